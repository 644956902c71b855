from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.builders import CHUNK, FLOATS, Model, cast, edited, random_tensor, small_model, tuned_model, whole, write_file, write_folder
from support.fixtures import PackOf
from support.recipes import DARE

import deltapack
from deltapack.errors import BaseMismatchError, DeltapackError, FormatError, RecipeError
from deltapack.restoring import verifying


def test_what_was_checked(tmp_path: Path) -> None:
    base = small_model() | {"long": random_tensor(1, (CHUNK + 1,), "bf16")}
    write_folder(tmp_path / "base", base, {"vocab.txt": "v"})
    write_folder(tmp_path / "tuned", tuned_model(base) | {"head": whole("u8", [1])}, {"vocab.txt": "w"})
    pack = tmp_path / "pack.dpk"
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", pack, recipe=DARE)
    calls: list[tuple[int, int]] = []
    report = deltapack.verify(pack, progress=lambda done, total: calls.append((done, total)))
    assert (report.pack, report.pack_bytes) == (pack, pack.stat().st_size)
    assert (report.chunks, report.side_files, report.base_tensors, report.result_digests) == (6, 1, 0, False)
    assert calls == [(number, 6) for number in range(1, 7)]
    for workers in (1, 3):
        report = deltapack.verify(pack, tmp_path / "base", workers=workers)
        assert (report.chunks, report.base_tensors, report.result_digests) == (6, 5, True)
    assert report.to_json()["pack"] == str(pack)
    with pytest.raises(RecipeError):
        deltapack.verify(pack, workers=0)


@pytest.mark.parametrize("content", ["", "hello\n", "A text file named .dpk.\n" * 50, "\u2028" * 100, "\0" * 200])
def test_files_that_are_no_packs(content: str, tmp_path: Path) -> None:
    base = write_file(tmp_path / "base.safetensors", small_model())
    pack = tmp_path / "text.dpk"
    pack.write_text(content)
    for act in (
        lambda: deltapack.open_pack(pack),
        lambda: deltapack.verify(pack),
        lambda: deltapack.apply(base, pack, tmp_path / "out"),
        lambda: deltapack.merge(base, [pack], tmp_path / "out"),
    ):
        with pytest.raises(FormatError) as error:
            act()
        assert str(pack) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing.dpk", "folder.dpk", "base.safetensors"])
def test_paths_that_are_no_packs(name: str, tmp_path: Path) -> None:
    base = write_file(tmp_path / "base.safetensors", small_model())
    (tmp_path / "folder.dpk").mkdir()
    for act in (lambda: deltapack.open_pack(tmp_path / name), lambda: deltapack.verify(tmp_path / name, base)):
        with pytest.raises(DeltapackError) as error:
            act()
        assert name in str(error.value)


Change = Callable[[Model], Model]


def flipped(name: str, place: int) -> Change:
    """Change one bit of one element, counted from either end."""
    return lambda base: base | {name: edited(base[name], place, int(base[name].bits.reshape(-1)[place]) ^ 1)}


def in_type(dtype: str) -> Change:
    return lambda base: {n: cast(t.f64, dtype) if t.dtype == "bf16" else t for n, t in base.items()}


def without(name: str) -> Change:
    return lambda base: {other: tensor for other, tensor in base.items() if other != name}


WRONG_BASES: dict[str, tuple[Change, str | None]] = {
    "another model": (lambda base: tuned_model(base, 77, scale=0.5), None),
    "other names": (lambda base: {f"model.{name}": tensor for name, tensor in base.items()}, None),
    "missing": (without("layer.bias"), "layer.bias"),
    "missing removed": (without("removed"), "removed"),
    "other shape": (lambda base: base | {"layer.bias": random_tensor(1, (7, 100), "bf16")}, "layer.bias"),
    "other rows": (lambda base: base | {"grown": random_tensor(4, (91, 8), "bf16")}, "grown"),
    **{f"in {dtype}": (in_type(dtype), None) for dtype in FLOATS if dtype != "bf16"},
    **{
        f"{name}[{place}]": (flipped(name, place), name)
        for name in ("embed.weight", "same", "long", "grown", "shrunk")
        for place in (0, 40, -1)
    },
}


@cache
def right_base() -> Model:
    return small_model(dtype="bf16") | {
        "long": random_tensor(3, (CHUNK + 70_000,), "bf16"),
        "grown": random_tensor(4, (90, 8), "bf16"),
        "shrunk": random_tensor(5, (90, 8), "bf16"),
        "same": random_tensor(6, (50,), "bf16"),
        "removed": random_tensor(7, (50,), "bf16"),
    }


@pytest.fixture(scope="module")
def right_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("right")
    base = right_base()
    tuned = tuned_model(base) | {"grown": random_tensor(4, (99, 8), "bf16"), "same": base["same"]}
    tuned["shrunk"] = random_tensor(5, (70, 8), "bf16")
    del tuned["removed"]
    base_path, tuned_path = write_file(folder / "b.safetensors", base), write_file(folder / "t.safetensors", tuned)
    deltapack.compress(base_path, tuned_path, folder / "right.dpk")
    deltapack.verify(folder / "right.dpk", base_path)
    return folder / "right.dpk"


@pytest.mark.parametrize("case", WRONG_BASES)
def test_wrong_base(case: str, right_pack: Path, tmp_path: Path) -> None:
    change, tensor = WRONG_BASES[case]
    model = change(right_base())
    base = write_file(tmp_path / "base.safetensors", model)
    for act in (
        lambda: deltapack.apply(base, right_pack, tmp_path / "out"),
        lambda: deltapack.apply(base, right_pack, tmp_path / "out", weight=0.5),
        lambda: deltapack.merge(base, [right_pack, right_pack], tmp_path / "out"),
        lambda: deltapack.merge(base, [right_pack], tmp_path / "out.dpk"),
        lambda: deltapack.verify(right_pack, base),
    ):
        with pytest.raises(BaseMismatchError) as error:
            act()
        assert error.value.tensor in (model | right_base() if tensor is None else [tensor])
        assert str(base) in str(error.value) and error.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_wrong_base_when_nobody_verifies(right_pack: Path, tmp_path: Path) -> None:
    base = write_file(tmp_path / "base.safetensors", flipped("same", 0)(right_base()))
    assert not deltapack.apply(base, right_pack, tmp_path / "out", verify=False).verified


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [CHUNK, CHUNK - 1, CHUNK // 2 + 3])
def test_stored_rows_are_compared_with_their_digests_without_the_base(
    rows: int, width: int, pack_of: PackOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not chunks of the rows begin where chunks of the result do, each that holds nothing of the base is compared once."""
    base = {"w": random_tensor(1, (1, width), "f8_e5m2")}
    tuned = {"w": random_tensor(1, (1 + rows, width), "f8_e5m2"), "new": random_tensor(2, (CHUNK + 1,), "f16")}
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(verifying, "_compare", lambda path, tensor, expected, found: compared.append((expected, found)))
    deltapack.verify(pack_of(base, tuned, allow_unrelated=True))
    assert len(compared) == 2 + len([start for start in range(0, (1 + rows) * width, CHUNK) if start >= width])
    assert all(expected == found for expected, found in compared)


def test_a_wrong_base_is_said_to_be_one_before_any_blob_is_read(pack_of: PackOf, tmp_path: Path) -> None:
    """R11 comes before R8: of a damaged pack and a wrong base, the base is reported."""
    base = {"w": random_tensor(1, (CHUNK + 5,), "bf16"), "z": random_tensor(2, (9,))}
    pack = pack_of(base, tuned_model(base))
    data = bytearray(pack.read_bytes())
    with deltapack.open_pack(pack) as opened:
        blobs = [blob for entry in opened.index.entries for blob in entry.blobs]
    for blob in blobs:
        data[blob.offset] ^= 1
    pack.write_bytes(data)
    other = write_file(tmp_path / "other.safetensors", {"w": base["w"]})
    with pytest.raises(BaseMismatchError) as caught:
        deltapack.apply(other, pack, tmp_path / "out")
    assert caught.value.rule == "R11"
    with pytest.raises(FormatError) as damaged:
        deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "out")
    assert damaged.value.rule == "R8"
