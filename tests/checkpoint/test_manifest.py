"""A folder is replaced where all in it is what was written there, as it was written; what is someone else's is named and kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deltapack.checkpoint import open_checkpoint, open_writer, plan_shards
from deltapack.checkpoint.manifest import MANIFEST, check_own, first_other, manifest_of
from deltapack.dtypes import BY_NAME
from deltapack.errors import OutputError
from deltapack.format.writer import open_pack_writer

F32 = BY_NAME["f32"]
LARGE = 600_000


def write(out: Path, *, number: float = 0, config: str = "{}", force: bool = True) -> None:
    """A file of 2.4 MB, which is listed by samples, and a small one."""
    with open_writer(out, plan_shards([("a", F32, (LARGE,))]), force=force) as writer:
        writer.write("a", 0, np.full(LARGE, number, "<f4"))
        writer.write_side_file("config.json", config.encode())
        writer.write_side_file("1_Pooling/config.json", b"{}")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", number=1)
    write(tmp_path / "out", number=2)
    with open_checkpoint(tmp_path / "out") as found:
        assert found.read("a", 0, 1).tolist() == [2]
        assert found.list_side_files()[1] == []  # the list is not even mentioned
    (tmp_path / "out" / "config.json").unlink()  # what is gone is no loss
    write(tmp_path / "out", number=3)
    assert os.listdir(tmp_path) == ["out"]


def test_the_same_checkpoint_has_the_same_list(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    one = (tmp_path / "one" / MANIFEST).read_bytes()
    assert one == (tmp_path / "two" / MANIFEST).read_bytes()
    assert sorted(json.loads(one)["files"]) == ["1_Pooling/config.json", "config.json", "model.safetensors"]


def _edit(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"mine")


def _move_and_link(path: Path, to: Path) -> None:
    shutil.move(path, to)
    path.symlink_to(to)


MINE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda out: (out / "notes.txt").write_text("mine"), "notes.txt"),
    "a hidden file": (lambda out: (out / ".env").write_text("mine"), ".env"),
    "a file in a folder": (lambda out: (out / "1_Pooling" / "mine").write_text("mine"), "1_Pooling/mine"),
    "a namesake of the list": (lambda out: (out / "1_Pooling" / MANIFEST).write_text("mine"), f"1_Pooling/{MANIFEST}"),
    "an empty folder": (lambda out: (out / "mine").mkdir(), "mine/"),
    "a link": (lambda out: (out / "mine").symlink_to(out.parent), "mine"),
    "a broken link": (lambda out: (out / "mine").symlink_to("nowhere"), "mine"),
    "an edited config": (lambda out: (out / "config.json").write_text("[]"), "config.json (changed since)"),
    "another checkpoint of that size": (lambda out: _edit(out / "model.safetensors", 100), "model.safetensors (changed since)"),
    "a few weights": (lambda out: _edit(out / "model.safetensors", 50_000), "model.safetensors (changed since)"),
    "a file replaced by a link": (lambda out: _move_and_link(out / "config.json", out.parent / "c"), "config.json (changed since)"),
}


@pytest.mark.parametrize("kind", MINE)
def test_what_others_wrote_is_named_and_kept(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    change, name = MINE[kind]
    listing = (out / MANIFEST).stat().st_mtime_ns
    change(out)
    os.utime(out / MANIFEST, ns=(listing - 10**9, listing - 10**9))  # the change comes later, whatever the clock's step
    os.utime(out / "model.safetensors", ns=(listing, listing) if name.startswith("model") else (0, 0))
    before = snapshot(out)
    with pytest.raises(OutputError, match="did not write") as caught:
        write(out, number=5)
    assert caught.value.found == name and "move them away" in str(caught.value)
    assert snapshot(out) == before and set(os.listdir(tmp_path)) <= {"out", "c"}


def test_what_comes_while_writing_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(OutputError, match=r"notes\.txt"), open_writer(tmp_path / "out", plan_shards([]), force=True):
        (tmp_path / "out" / "notes.txt").write_text("mine")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"deltapack": 2}', '{"deltapack": 1, "kind": "demo", "files": {}}', "[" * 100_000])
def test_a_list_of_another_kind_is_none(text: str, tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_text(text)
    with pytest.raises(OutputError, match="has no list of what a checkpoint"):
        check_own(tmp_path / "out", "checkpoint")


def test_a_list_that_says_nonsense_owns_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out")
    files = {"config.json": 3, "model.safetensors": {}, "1_Pooling/config.json": {"size": 2}}
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({"deltapack": 1, "kind": "checkpoint", "files": files}))
    with pytest.raises(OutputError, match=r"(changed since.*){3}"):
        check_own(tmp_path / "out", "checkpoint")


def test_a_folder_without_a_list_is_replaced_by_itself_alone(tmp_path: Path) -> None:
    """As a version without lists left it."""
    out = tmp_path / "out"
    write(out, number=1)
    (out / MANIFEST).unlink()
    before = snapshot(out)
    for number, config in ((2, "{}"), (1, "[]")):
        with pytest.raises(OutputError, match="not all in it would be written again"):
            write(out, number=number, config=config)
        assert snapshot(out) == before and os.listdir(tmp_path) == ["out"]
    write(out, number=1)
    assert snapshot(out).keys() == {*before, MANIFEST}


@pytest.mark.parametrize("name", ["notes.txt", "model-00001-of-00002.safetensors", "thesis.docx", ".gitattributes"])
def test_what_cannot_come_again_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    (out / MANIFEST).unlink()
    (out / name).write_text("mine")
    began = False
    with pytest.raises(OutputError, match="no list") as caught, open_writer(out, plan_shards([("a", F32, (LARGE,))]), force=True) as writer:
        began = True
        writer.write("a", 0, np.zeros(LARGE, "<f4"))
    assert began == (name == "notes.txt")  # a text may be a side file, so only the end tells
    assert (out / name).read_text() == "mine" and str(caught.value.found) in (name, "1_Pooling/config.json", "config.json")


def test_first_other_reads_to_the_end(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(1 << 23))
    assert first_other(tmp_path / "one", tmp_path / "two") is None
    _edit(tmp_path / "one" / "x", (1 << 23) - 4)
    assert first_other(tmp_path / "one", tmp_path / "two") == "x"


def test_the_list_of_a_folder_names_all_but_itself(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", MANIFEST, f"sub/{MANIFEST}"):
        (tmp_path / name).write_text(name)
    files = json.loads(manifest_of(tmp_path, "demo"))["files"]
    assert sorted(files) == sorted(["a", "sub/b", f"sub/{MANIFEST}"])


def test_single_files_replace_files_of_their_kind(tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.dpk"):
        (tmp_path / name).write_text("my thesis, at length")
    with (
        pytest.raises(OutputError, match="no safetensors file"),
        open_writer(tmp_path / "x.safetensors", plan_shards([]), force=True),
    ):
        pass
    with pytest.raises(OutputError, match="no pack"), open_pack_writer(tmp_path / "x.dpk", force=True):
        pass
    assert {path.read_text() for path in tmp_path.iterdir()} == {"my thesis, at length"}
