"""Bases that are not as they were at packing: what applies with a note, what is refused, and that `verify` and `apply` agree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import edited, random_tensor, read_file, read_folder, tuned_model, write_file, write_folder
from support.laws import examples
from support.recipes import DARE
from support.small_packs import index_of

import deltapack
from deltapack.errors import BaseMismatchError, DeltapackError, FormatError, UnsupportedError
from deltapack.format.writer import open_pack_writer

MODEL = {"w": random_tensor(1, (40, 40)), "v": random_tensor(2, (50,)), "gone": random_tensor(3, (5,))}
WORDS = "".join(f'  "word {7 * number % 301}": {number},\n' for number in range(300))
FILES = {
    "README.md": "teh model\n",
    "LICENSE": "free\n",
    "tokenizer.json": "{\n" + WORDS + '  "end": 300\n}\n',
    "tokenizer_config.json": '{"a": 1}\n',
    "vocab.txt": "a\nb\n",
    "1_Pooling/config.json": "{}\n",
}
TUNED = FILES | {"config.json": '{"b": 2}\n', "tokenizer.json": "{\n" + WORDS + '  "end": 300,\n  "new": 301\n}\n', "special.json": "[]"}


@cache
def family(folder: Path) -> tuple[Path, Path, Path]:
    """A base, a fine-tune and its pack, whose tokenizer refers to the base's."""
    base, tuned = (
        write_folder(folder / "base", MODEL, FILES),
        {name: tensor for name, tensor in tuned_model(MODEL).items() if name != "gone"},
    )
    deltapack.compress(base, write_folder(folder / "tuned", tuned, TUNED), folder / "pack.dpk", recipe=DARE)
    with deltapack.open_pack(folder / "pack.dpk") as pack:
        assert pack.index.required == ("files.base",)
        assert [file.name for file in pack.index.files or () if file.base] == ["tokenizer.json"]
    return base, folder / "tuned", folder / "pack.dpk"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return family(tmp_path_factory.mktemp("moved"))


def crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


def test_texts_line_ends_and_layout_do_not_matter(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, pack = made
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    for name in FILES:
        (moved / name).write_bytes(crlf((moved / name).read_bytes()))
    (moved / "README.md").write_text("the model\r\n")
    (moved / "LICENSE").unlink()
    (moved / "tokenizer.json").write_text((base / "tokenizer.json").read_text().replace("\n", "").replace("  ", " "))
    report = deltapack.apply(moved, pack, tmp_path / "out")
    wanted = {name: data for name, data in read_folder(tuned).items() if not name.endswith(".safetensors")}
    found = {name: data for name, data in read_folder(tmp_path / "out").items() if not name.endswith(".safetensors")}
    del wanted["LICENSE"]
    assert found == wanted | {"README.md": b"the model\r\n"}
    assert report.verified and any("README.md" in note for note in report.notes) and any("LICENSE" in note for note in report.notes)
    assert set(deltapack.verify(pack, moved).notes) <= set(report.notes)
    assert deltapack.verify(pack, moved).notes


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.txt", "1_Pooling/config.json", "tokenizer.json"])
@pytest.mark.parametrize("change", ["gone", "other"])
def test_what_the_result_needs_is_fetched_or_refused(made: tuple[Path, Path, Path], tmp_path: Path, name: str, change: str) -> None:
    base, _, pack = made
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    if change == "gone":
        (moved / name).unlink()
    else:
        (moved / name).write_text("{}x")
    for act in (
        lambda: deltapack.verify(pack, moved),
        lambda: deltapack.apply(moved, pack, tmp_path / "out"),
        lambda: deltapack.merge(moved, [pack], tmp_path / "out"),
        lambda: deltapack.merge(moved, [pack], tmp_path / "out.dpk"),
    ):
        with pytest.raises(BaseMismatchError, match=f"{name}.*Fetch {name}") as caught:
            act()
        assert caught.value.exit_code == 4 and caught.value.rule == ("R11" if change == "gone" else "R12")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_file_that_is_no_side_file_can_be_left_to_the_base(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", {}, {"odd.weird": "x"})
    with open_pack_writer(tmp_path / "pack.dpk", force=False) as writer:
        writer.finish(index_of([], (writer.side_file("odd.weird", b"x", carry=False),)))
    assert deltapack.verify(tmp_path / "pack.dpk", base).notes == []
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    assert (tmp_path / "out" / "odd.weird").read_text() == "x"


def test_more_tensors_are_said_and_are_not_in_the_result(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, pack = made
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    write_file(moved / "model.safetensors", MODEL | {"rotary.inv_freq": random_tensor(9, (7,))})
    report = deltapack.apply(moved, pack, tmp_path / "out")
    assert report.verified and any("rotary.inv_freq" in note for note in report.notes)
    deltapack.apply(base, pack, tmp_path / "same")
    assert read_file(tmp_path / "out" / "model.safetensors") == read_file(tmp_path / "same" / "model.safetensors")
    deltapack.merge(moved, [pack], tmp_path / "merged.dpk", weights=0.5)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "half")


Change = Callable[[Path], None]
NAMES = (*FILES, "config.json", "special.json")
FILE_CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\n",
    "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:] if data else b"x",
    "crlf": crlf,
    "one line": lambda data: data.replace(b"\n", b""),
}
TENSOR_CHANGES = {
    "gone": lambda name: {other: tensor for other, tensor in MODEL.items() if other != name},
    "more": lambda name: MODEL | {"more": MODEL[name]},
    "flipped": lambda name: MODEL | {name: edited(MODEL[name], 3, 1.5)},
    "reshaped": lambda name: MODEL | {name: random_tensor(1, (7, 3))},
}


def verdict(act: Callable[[], object]) -> tuple[str, str | None]:
    """The kind of error and its rule, or that there is none."""
    try:
        act()
    except DeltapackError as error:
        return type(error).__name__, error.rule
    return "fits", None


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(FILE_CHANGES)), max_size=3),
    tensors=st.none() | st.tuples(st.sampled_from(sorted(TENSOR_CHANGES)), st.sampled_from(sorted(MODEL))),
)
def test_verify_and_apply_agree(
    made: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], tensors: tuple[str, str] | None
) -> None:
    base, _, pack = made
    folder = tmp_path_factory.mktemp("case")
    moved = folder / "base"
    shutil.copytree(base, moved)
    for name, change in files.items():
        data = (moved / name).read_bytes() if (moved / name).exists() else b""
        new = FILE_CHANGES[change](data)
        if new is None:
            (moved / name).unlink(missing_ok=True)
        else:
            (moved / name).write_bytes(new)
    if tensors is not None:
        write_file(moved / "model.safetensors", TENSOR_CHANGES[tensors[0]](tensors[1]))
    said = verdict(lambda: deltapack.verify(pack, moved))
    done = verdict(lambda: deltapack.apply(moved, pack, folder / "out"))
    assert said == done
    assert (folder / "out").exists() == (done[0] == "fits")
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/x.pkl", "a/b/c/d/e/f.json"])
def test_files_that_nobody_should_create(name: str, tmp_path: Path) -> None:
    """No writer makes such a pack; that no reader takes one, vectors of R13 show."""
    with pytest.raises(FormatError, match=name) as caught, open_pack_writer(tmp_path / "pack.dpk", force=False) as writer:
        writer.finish(index_of([], (writer.side_file(name, b"x", carry=True),)))
    assert caught.value.rule == "R13" and not (tmp_path / "pack.dpk").exists()


@pytest.mark.parametrize("name", ["model.safetensors/x", "n" * 300])
def test_names_that_no_disk_takes_are_the_packs_fault(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="plain path") as caught, open_pack_writer(tmp_path / "pack.dpk", force=False) as writer:
        writer.finish(index_of([], (writer.side_file(name, b"x", carry=True),)))
    assert caught.value.rule == "R13"


def test_a_pack_that_refers_says_so_to_older_readers(made: tuple[Path, Path, Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltapack.format.parsing.known_features", frozenset)
        with pytest.raises(UnsupportedError, match=r"unknown feature: found files\.base"):
            deltapack.verify(made[2])


def test_a_base_that_ties_what_were_two_tensors_is_another(tmp_path: Path) -> None:
    twins = {"a.weight": MODEL["w"], "b.weight": MODEL["w"]}
    base, pack = write_file(tmp_path / "base.safetensors", twins), tmp_path / "pack.dpk"
    deltapack.compress(base, write_file(tmp_path / "tuned.safetensors", tuned_model(twins)), pack)
    tied = write_file(tmp_path / "tied.safetensors", {"a.weight": MODEL["w"]}, {"b.weight": "a.weight"})
    for act in (lambda: deltapack.verify(pack, tied), lambda: deltapack.apply(tied, pack, tmp_path / "out")):
        with pytest.raises(BaseMismatchError, match="ties tensors that were two") as caught:
            act()
        assert (caught.value.tensor, caught.value.rule) == ("b.weight", "R11")
