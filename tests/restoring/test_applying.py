from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import (
    CHUNK,
    FLOATS,
    TILE,
    Model,
    Tensor,
    add_by_hand,
    cast,
    decode_by_spec,
    edited,
    leftovers,
    moved,
    random_tensor,
    read_file,
    read_model,
    small_model,
    tuned_model,
    whole,
    write_file,
    write_folder,
)
from support.fixtures import Applied, PackOf

import deltapack
from deltapack.checkpoint.files import WriteFile
from deltapack.errors import OutputError, RecipeError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.packing.recipe import INDEX_CHOICES
from deltapack.sources.local import LocalFile


def by_hand(base: Mapping[str, Tensor], pack_path: Path, scale: float = 1.0) -> Model:
    """Every delta of a pack added by numpy, the rest as the pack or the base has it."""
    out = {}
    with deltapack.open_pack(pack_path) as pack:
        for name, entry in pack.items():
            if entry.kind == "unchanged":
                out[name] = base[name]
            elif entry.kind == "stored":
                out[name] = Tensor(entry.dtype, entry.to_dense())
            else:
                positions, values = entry.to_sparse()
                out[name] = add_by_hand(base[name], positions, values * np.float32(scale), entry.dtype)
    return out


def check(base: Model, pack: Path, applied: Applied) -> Model:
    """Restored by the package, by hand and by the reference decoder: one model."""
    result = applied(pack)
    assert result == by_hand(base, pack)
    assert result == decode_by_spec(base, pack)
    return result


@pytest.mark.parametrize("tuned_dtype", FLOATS)
@pytest.mark.parametrize("base_dtype", FLOATS)
def test_every_pair_of_dtypes(base_dtype: str, tuned_dtype: str, pack_of: PackOf, applied: Applied) -> None:
    base = {"w": random_tensor(1, (300, 7), base_dtype), "v": random_tensor(2, (TILE + 3,), base_dtype)}
    tuned = {name: moved(tensor, 5, 0.05, tuned_dtype) for name, tensor in base.items()}
    for values in ("int4", "bf16"):
        result = check(base, pack_of(base, tuned, drop_rate=0.8, values=values, force=True), applied)
        assert {tensor.dtype for tensor in result.values()} == {tuned_dtype}


@pytest.mark.parametrize("index", [index for index in INDEX_CHOICES if index != "seeded"])  # `auto` is seeded, but where nothing is dropped
@pytest.mark.parametrize("values", VALUE_CODECS)
def test_every_codec_at_every_rate(values: str, index: str, pack_of: PackOf, applied: Applied) -> None:
    base = {"w": random_tensor(1, (3, TILE // 2 + 1), "bf16"), "v": random_tensor(2, (900,), "f32")}
    tuned = tuned_model(base)
    for rate in (0, 0.5, 0.9, 0.99):
        given = "auto" if index == "stratified" and rate == 0 else index  # a mask that keeps all is none
        check(base, pack_of(base, tuned, drop_rate=rate, values=values, index=given, force=True), applied)


@pytest.mark.parametrize("index", ["seeded", "gaps", "bitmap"])
@pytest.mark.parametrize("rate", [1e-5, 0.999, 0.9999999])
def test_extreme_rates(index: str, rate: float, pack_of: PackOf, applied: Applied) -> None:
    base = {"w": random_tensor(1, (TILE + 900,), "f16"), "v": random_tensor(2, (900,), "f64")}
    check(base, pack_of(base, tuned_model(base, scale=1e-4), drop_rate=rate, index=index, values="int8"), applied)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_borders_of_tiles_and_chunks(dtype: str, pack_of: PackOf, applied: Applied) -> None:
    sizes = (1, 127, 128, 129, TILE - 1, TILE, TILE + 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + TILE + 1)
    base = {f"{size}": random_tensor(size, (size,), dtype) for size in sizes}
    check(base, pack_of(base, tuned_model(base), values="int3"), applied)
    check(base, pack_of(base, tuned_model(base), values="f16", index="gaps", drop_rate=0.5, force=True), applied)


def test_nothing_dropped_and_f32_values_restore_the_fine_tune(pack_of: PackOf, applied: Applied) -> None:
    # Differences of f16 or bf16 numbers as near as these are exact in f32, and their sum is the fine-tune again.
    for dtype in ("f16", "bf16"):
        base = {"w": random_tensor(1, (5000,), dtype)}
        tuned = tuned_model(base, scale=0.001)
        pack = pack_of(base, tuned, drop_rate=0, values="f32", force=True)
        with deltapack.open_pack(pack) as opened:
            assert opened["w"].kind == "delta"
        assert np.array_equal(applied(pack)["w"].f64, tuned["w"].f64)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dropped_elements_keep_the_bits_of_the_base(dtype: str, pack_of: PackOf, applied: Applied) -> None:
    base = {"w": random_tensor(1, (9000,), dtype)}
    pack = pack_of(base, tuned_model(base, scale=0.1))
    result = applied(pack)["w"]
    with deltapack.open_pack(pack) as opened:
        kept = opened["w"].to_sparse()[0] if opened["w"].kind == "delta" else np.arange(9000)
    dropped = np.setdiff1d(np.arange(9000), kept)
    assert np.array_equal(result.bits[dropped], base["w"].bits[dropped])
    assert not np.array_equal(result.bits, base["w"].bits)


@pytest.mark.parametrize("dtype", FLOATS)
def test_negative_zero(dtype: str, pack_of: PackOf, applied: Applied) -> None:
    negative = cast(np.full(4000, -0.0), dtype)
    base = {"same": negative, "some": negative, "sign": negative}
    tuned = {
        "same": negative,
        "some": edited(negative, 7, cast(np.ones(1), dtype).bits[0]),
        "sign": cast(np.zeros(4000), dtype),
    }
    assert not np.array_equal(base["sign"].bits.view(np.uint8), tuned["sign"].bits.view(np.uint8))
    result = check(base, pack_of(base, tuned, values="int8", drop_rate=0.5), applied)
    assert result["same"] == negative
    assert 0 < np.signbit(result["some"].f64).sum() < 4000  # only where dropped


def test_unchanged_model(pack_of: PackOf, applied: Applied) -> None:
    base = small_model() | {"empty": whole("u8", np.zeros((0, 3))), "scalar": cast(np.array(3.0), "bf16")}
    pack = pack_of(base, base)
    assert applied(pack) == base
    with deltapack.open_pack(pack) as opened:
        assert {entry.kind for entry in opened.values()} == {"unchanged"}
    assert pack.stat().st_size < 1200


def test_every_digest_is_checked(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base))
    paths = tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors"
    assert deltapack.apply(*paths).verified
    assert not deltapack.apply(*paths, weight=0.5, force=True).verified
    assert not deltapack.apply(*paths, verify=False, force=True).verified
    assert not deltapack.apply(*paths, dtype="bf16", force=True).verified
    report = deltapack.apply(*paths, workers=3, force=True)
    assert (report.tensors, report.tensor_bytes) == (4, sum(len(tensor.raw) for tensor in base.values()))


@pytest.mark.parametrize("weight", [0.0, 0.3, -1.0, 1.5])
def test_weight(weight: float, pack_of: PackOf, applied: Applied) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base), values="bf16", drop_rate=0.5)  # a factor of 2 commutes with the weight
    result = applied(pack, weight=weight)
    assert result == by_hand(base, pack, weight)
    assert result == decode_by_spec(base, pack, weight=weight)


def test_weight_zero_gives_the_base(pack_of: PackOf, applied: Applied) -> None:
    base = small_model()
    assert applied(pack_of(base, tuned_model(base)), weight=0) == base


@pytest.mark.parametrize("rescale", [0.0, -1.0])
def test_a_rescale_that_is_none_is_refused(rescale: float, pack_of: PackOf, applied: Applied) -> None:
    """0 would give the base in silence."""
    base = small_model()
    with pytest.raises(RecipeError, match=r"rescale is out of range: expected above 0.*--weight"):
        applied(pack_of(base, tuned_model(base)), rescale=rescale)
    with pytest.raises(RecipeError, match="rescale is out of range"):
        deltapack.Recipe(rescale=rescale)


@pytest.mark.parametrize("rescale", [1.0, 4.0])
def test_rescale(rescale: float, pack_of: PackOf, applied: Applied) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base), drop_rate=0.9, values="int4")
    result = applied(pack, rescale=rescale)
    assert result == decode_by_spec(base, pack, factor=rescale)
    assert result == applied(pack_of(base, tuned_model(base), "own", drop_rate=0.9, values="int4", rescale=rescale))


def test_what_a_rescale_does_that_is_not_plain_is_told(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    recipes: dict[str, dict[str, Any]] = {
        "one": {"drop_rate": 0.9},
        "nothing": {"drop_rate": 0.0},
        "several": {"budget": deltapack.Budget(quality="small")},
    }
    told = {"one": "", "nothing": "rescale changed nothing", "several": "rescale took the place of factors from"}
    for name, recipe in recipes.items():
        pack = pack_of(base, tuned_model(base), name, **recipe)
        report = deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / f"{name}-out.safetensors", rescale=3.0)
        notes = [note for note in report.notes if "rescale" in note]
        assert all(told[name] in note for note in notes) and bool(notes) == bool(told[name]), name


@pytest.mark.parametrize("dtype", FLOATS)
def test_output_dtype(dtype: str, pack_of: PackOf, applied: Applied, tmp_path: Path) -> None:
    base = small_model()
    tuned = tuned_model(base) | {"new": random_tensor(3, (5,))}
    pack = pack_of(base, tuned, values="f32", drop_rate=0.5)
    result = applied(pack, dtype=dtype)
    assert {tensor.dtype for name, tensor in result.items() if name != "positions"} == {dtype}
    assert result["positions"] == base["positions"]
    assert result["new"] == (tuned["new"] if dtype == "f32" else cast(tuned["new"].f64, dtype))
    with deltapack.open_pack(pack) as opened:
        positions, values = opened["layer.weight"].to_sparse()
    assert result["layer.weight"] == add_by_hand(base["layer.weight"], positions, values, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"rescale": float("inf")},
        {"dtype": "i8"},
        {"dtype": "int8"},
        {"workers": 0},
        {"max_shard_size": "5 bananas"},
    ],
)
def test_bad_options_leave_nothing(options: dict[str, object], pack_of: PackOf, tmp_path: Path) -> None:
    pack = pack_of(small_model(), tuned_model(small_model()))
    with pytest.raises(RecipeError):
        deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


def test_shards(tmp_path: Path) -> None:
    base = small_model()
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_model(base))
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "pack.dpk")
    deltapack.apply(tmp_path / "base", tmp_path / "pack.dpk", tmp_path / "one")
    deltapack.apply(tmp_path / "base", tmp_path / "pack.dpk", tmp_path / "many", max_shard_size=100_000)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    assert read_model(tmp_path / "many") == read_model(tmp_path / "one")
    deltapack.compress(tmp_path / "many", tmp_path / "tuned", tmp_path / "sharded base.dpk", recipe=None)
    deltapack.apply(tmp_path / "many", tmp_path / "sharded base.dpk", tmp_path / "from shards")
    assert {path.name for path in (tmp_path / "from shards").iterdir()} == {path.name for path in (tmp_path / "many").iterdir()}


def test_outputs_that_may_not_be_written(tmp_path: Path) -> None:
    base = small_model()
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_model(base))
    pack = tmp_path / "pack.dpk"
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", pack)
    (tmp_path / "link").symlink_to(tmp_path / "base", target_is_directory=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").write_text("x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outs = ("base", "base/inside", "base/model.safetensors", "link", "link/inside", "mine", "", "no/where")
    for out in outs:
        with pytest.raises(OutputError):
            deltapack.apply(tmp_path / "base", pack, tmp_path / out, force=True)
    for out in ("pack.dpk", "x.pt", "-", "x.SAFETENSORS"):
        with pytest.raises(RecipeError, match=r"output cannot be|standard output|in capitals"):
            deltapack.apply(tmp_path / "base", pack, Path(out) if out == "-" else tmp_path / out, force=True)
    deltapack.apply(tmp_path / "base", pack, tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        deltapack.apply(tmp_path / "base", pack, tmp_path / "out")
    for path, data in before.items():
        assert path.read_bytes() == data
    assert not leftovers(tmp_path) and not leftovers(tmp_path / "base")


def test_packs_of_files_apply_to_folders_and_the_reverse(tmp_path: Path) -> None:
    base = small_model()
    tuned = tuned_model(base)
    write_folder(tmp_path / "base", base, {"tokenizer.json": "{}"})
    write_file(tmp_path / "base.safetensors", base)
    write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "pack.dpk")
    deltapack.apply(tmp_path / "base", tmp_path / "pack.dpk", tmp_path / "out")
    deltapack.apply(tmp_path / "base.safetensors", tmp_path / "pack.dpk", tmp_path / "out.safetensors")
    assert read_model(tmp_path / "out") == read_model(tmp_path / "out.safetensors")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("verify", [True, False])
def test_unchanged_tensors_go_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack_of: PackOf, verify: bool) -> None:
    base = {"big": random_tensor(1, (CHUNK + 9,)), "moved": random_tensor(2, (500,)), "none": random_tensor(3, (0, 2))}
    pack = pack_of(base, base | {"moved": moved(base["moved"], 4)})
    copied = []
    copy = WriteFile.copy

    def spy(file: WriteFile, source: LocalFile, start: int, offset: int, length: int) -> bool:
        copied.append(length)
        return copy(file, source, start, offset, length)

    monkeypatch.setattr(WriteFile, "copy", spy)
    out = tmp_path / "out.safetensors"
    deltapack.apply(tmp_path / "base.safetensors", pack, out, verify=verify)
    assert sorted(copied) == [36, 4 * CHUNK]
    found = read_file(out)
    assert found["big"] == base["big"] and found["none"] == base["none"] and found["moved"] != base["moved"]


def test_rescale_leaves_vectors_alone(tmp_path: Path) -> None:
    """Nothing was dropped from them, so there is nothing to make up for."""
    base = {"w": random_tensor(1, (60, 60)), "norm.weight": random_tensor(2, (500,))}
    tuned = tuned_model(base)
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(*paths, tmp_path / "x.dpk")
    results = []
    for number, rescale in enumerate((None, 3.0)):
        out = tmp_path / f"out{number}.safetensors"
        deltapack.apply(paths[0], tmp_path / "x.dpk", out, rescale=rescale)
        results.append(read_model(out))
    assert results[0]["norm.weight"] == results[1]["norm.weight"] and results[0]["w"] != results[1]["w"]
    assert decode_by_spec(base, tmp_path / "x.dpk", factor=3.0) == results[1]


@pytest.mark.parametrize(("weight", "told"), [(1.0, False), (2.0, True), (0.0, False)])
def test_statistics_go_by_the_weight_and_that_is_told(tmp_path: Path, weight: float, told: bool) -> None:
    base = {"w": random_tensor(1, (60, 60)), "bn.running_var": random_tensor(2, (50,))}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned_model(base))
    deltapack.compress(*paths, tmp_path / "x.dpk")
    report = deltapack.apply(paths[0], tmp_path / "x.dpk", tmp_path / "out.safetensors", weight=weight)
    assert any("bn.running_var" in note for note in report.notes) is told
