"""Packs in numbered parts: the same pack, however it is named, and each fault of the parts is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builders import read_model, small_model, tuned_model, write_folder

import deltapack
from deltapack.errors import DeltapackError, FormatError, NotAPackError, OutputError, RecipeError
from deltapack.sources import stores

EXACT = deltapack.Recipe(exact=True)
INDEX = "x.dpk.index.json"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with `base`, `tuned` and `whole.dpk`, and the pack in parts: `x.dpk`."""
    write_folder(tmp_path / "base", small_model(), {"config.json": "{}"})
    write_folder(tmp_path / "tuned", tuned_model(small_model()), {"config.json": '{"a": 1}'})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "whole.dpk", recipe=EXACT)
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=EXACT, max_part_size=1500)
    return tmp_path


def parts(folder: Path, stem: str = "x") -> list[Path]:
    return sorted(folder.glob(f"{stem}-*-of-*.dpk"))


def test_parts_are_slices_with_an_index(here: Path) -> None:
    whole = (here / "whole.dpk").read_bytes()
    count = -(-len(whole) // 1500)
    names = [f"x-{number:05d}-of-{count:05d}.dpk" for number in range(1, count + 1)]
    assert [path.name for path in parts(here)] == names and count > 2 and not (here / "x.dpk").exists()
    assert b"".join(path.read_bytes() for path in parts(here)) == whole
    document = json.loads((here / INDEX).read_bytes())
    with deltapack.open_pack(here / "whole.dpk") as pack:
        assert document["pack_id"] == pack.id
    said = [(row["name"], row["size"], row["sha256"]) for row in document["parts"]]
    assert said == [(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in parts(here)]
    assert (document["format"], document["version"], document["size"]) == ("deltapack-parts", 1, len(whole))
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("which", ["x.dpk", INDEX, "first"])
def test_every_name_is_the_pack(here: Path, which: str) -> None:
    name = here / (parts(here)[0].name if which == "first" else which)
    assert deltapack.verify(name, here / "base").result_digests
    deltapack.apply(here / "base", name, here / "out")
    assert (here / "out" / "model.safetensors").read_bytes() == (here / "tuned" / "model.safetensors").read_bytes()
    for pack, out in ((name, "a.safetensors"), (here / "whole.dpk", "b.safetensors")):
        deltapack.merge(here / "base", [pack], here / out, weights=[0.5])
    assert read_model(here / "a.safetensors") == read_model(here / "b.safetensors")


def test_splitting_and_cutting_anew(here: Path) -> None:
    with pytest.raises(OutputError, match="the output is one of the inputs"):
        deltapack.split(here / INDEX, max_part_size="2KB", force=True)
    (here / "anew").mkdir()
    report = deltapack.split(here / INDEX, here / "anew/x.dpk", max_part_size="2KB")
    for path in parts(here):
        path.unlink()
    for path in (here / "anew").iterdir():
        path.replace(here / path.name)
    size = (here / "whole.dpk").stat().st_size
    assert (
        report.parts == [path.name for path in parts(here)] and len(report.parts) == -(-size // 2000) and report.pack == here / "anew/x.dpk"
    )
    assert deltapack.verify(here / "x.dpk").pack_bytes == size
    deltapack.split(here / "whole.dpk", here / "y.dpk", max_part_size=size)
    assert [path.name for path in parts(here, "y")] == ["y-00001-of-00001.dpk"]
    with pytest.raises(OutputError, match="the output exists, in parts"):
        deltapack.split(here / "whole.dpk", here / "y.dpk", max_part_size=100)
    with pytest.raises(OutputError, match="the output exists, in parts"):
        deltapack.compress(here / "base", here / "tuned", here / "x.dpk")
    with pytest.raises(OutputError, match="a pack of this name exists"):
        deltapack.split(here / INDEX, here / "whole.dpk", max_part_size=100)
    with pytest.raises(RecipeError, match=r"too many parts: expected at most 1000"):
        deltapack.split(here / "whole.dpk", here / "z.dpk", max_part_size=1)
    with pytest.raises(RecipeError, match="the size of parts is too small"):
        deltapack.split(here / "whole.dpk", here / "z.dpk", max_part_size=0)
    (here / "z-00001-of-00001.dpk").write_bytes(b"mine")
    with pytest.raises(OutputError, match="a file has the name of a part"):
        deltapack.split(here / "whole.dpk", here / "z.dpk", max_part_size=size, force=True)
    assert (here / "z-00001-of-00001.dpk").read_bytes() == b"mine"


def test_what_the_name_stood_for_before_is_gone(here: Path) -> None:
    deltapack.compress(here / "base", here / "tuned", here / "x.dpk", recipe=EXACT, force=True)
    assert (here / "x.dpk").read_bytes() == (here / "whole.dpk").read_bytes() and not parts(here) and not (here / INDEX).exists()
    deltapack.compress(here / "base", here / "tuned", here / "x.dpk", recipe=EXACT, force=True, max_part_size=1500)
    assert not (here / "x.dpk").exists() and len(parts(here)) > 2
    deltapack.compress(here / "base", here / "tuned", here / "x.dpk", recipe=EXACT, force=True, max_part_size="1GB")
    assert (here / "x.dpk").read_bytes() == (here / "whole.dpk").read_bytes() and not parts(here) and not (here / INDEX).exists()


def test_parts_never_take_the_names_of_others_that_they_replace(here: Path) -> None:
    """So the old pack is whole until the index of the new one is there; the same pack, cut alike, keeps its names."""
    count = len(parts(here))
    before = [path.name for path in parts(here)]
    deltapack.split(here / "whole.dpk", here / "x.dpk", max_part_size=1500, force=True)
    assert [path.name for path in parts(here)] == before
    tuned = write_folder(here / "another", tuned_model(small_model(), seed=7))
    deltapack.compress(here / "base", tuned, here / "other.dpk", recipe=EXACT)
    size = (here / "other.dpk").stat().st_size
    report = deltapack.split(here / "other.dpk", here / "x.dpk", max_part_size=-(-size // count), force=True)
    assert report.parts == [path.name for path in parts(here)] and len(report.parts) > count and not set(before) & set(report.parts)
    assert b"".join(path.read_bytes() for path in parts(here)) == (here / "other.dpk").read_bytes()


def test_parts_that_a_stopped_run_left_are_taken(here: Path) -> None:
    """Parts without an index are in nobody's way if they are what is written anyway."""
    whole = (here / "whole.dpk").read_bytes()
    deltapack.split(here / "whole.dpk", here / "y.dpk", max_part_size=1500)
    (here / "y.dpk.index.json").unlink()
    deltapack.split(here / "whole.dpk", here / "y.dpk", max_part_size=1500)
    assert b"".join(path.read_bytes() for path in parts(here, "y")) == whole and deltapack.verify(here / "y.dpk").pack_bytes == len(whole)
    (here / "y.dpk.index.json").unlink()
    changed = parts(here, "y")[1]
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    with pytest.raises(OutputError, match="a file has the name of a part"):
        deltapack.split(here / "whole.dpk", here / "y.dpk", max_part_size=1500)


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def edit(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / INDEX).read_bytes())
        (folder / INDEX).write_text(json.dumps(document | fields))

    return change


def edit_part(number: int, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / INDEX).read_bytes())
        document["parts"][number] |= fields
        (folder / INDEX).write_text(json.dumps(document))

    return change


def swap_rows(folder: Path) -> None:
    document = json.loads((folder / INDEX).read_bytes())
    document["parts"][0], document["parts"][1] = document["parts"][1], document["parts"][0]
    (folder / INDEX).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda folder: parts(folder)[1].unlink(), r"x-00002-of-\d+\.dpk: a part of the pack is missing: expected 1500 bytes"),
        (lambda folder: parts(folder)[1].write_bytes(b"short"), r"x-00002.*another size: expected 1500 bytes, found 5"),
        (lambda folder: swap(*parts(folder)[:2]), r"x-00001.*the first part does not begin as a pack"),
        (lambda folder: swap(*parts(folder)[1:3]), r"x-00002.*damaged, or has changed places"),
        (edit(pack_id="0" * 64), "the parts are of another pack than their index says: expected 0000"),
        (edit(pack_id="x"), "the id of the pack is none"),
        (edit(size=7), "do not add up to that of the pack: expected 7"),
        (edit(format="other"), "no index of the parts of a pack"),
        (edit(version=2), "a version that is not read"),
        (edit(parts=[]), "there are no parts, or too many"),
        (edit(parts=[1]), "a part is described otherwise"),
        (edit(more=1), "the index of parts has other fields"),
        (edit_part(0, name="../x-00001-of-00002.dpk"), "a name that is none of a file beside the index"),
        (edit_part(1, name="other.dpk"), r"part 2 has another name: expected x-00002-of-\d+\.dpk, found 'other\.dpk'"),
        (edit_part(1, size=-1), "the size of x-00002.* is none"),
        (edit_part(1, sha256="0" * 63), "the digest of x-00002.* is none"),
        (edit_part(1, sha256="0" * 64), r"x-00002.*damaged, or has changed places"),
        (swap_rows, "part 1 has another name"),
        (lambda folder: (folder / INDEX).write_bytes(b"["), "the index of parts is no JSON"),
        (lambda folder: (folder / INDEX).write_bytes(b"[]"), "the index of parts is no object: expected an object, found 'list'"),
    ],
)
def test_faults_are_told(here: Path, harm: Callable[[Path], None], match: str) -> None:
    harm(here)
    with pytest.raises(FormatError, match=match) as caught:
        deltapack.verify(here / "x.dpk")
    assert Path(str(caught.value.path)).parent == here


def test_a_later_part_is_not_the_pack(here: Path) -> None:
    with pytest.raises(NotAPackError, match=r"a later part of a pack\. Name the whole: x\.dpk"):
        deltapack.verify(parts(here)[1])
    (here / INDEX).unlink()
    for path in (here / "x.dpk", here / INDEX, parts(here)[0]):
        with pytest.raises(DeltapackError):
            deltapack.verify(path)


@pytest.fixture
def memory() -> Iterator[str]:
    """A place in fsspec's store in memory."""
    fsspec = pytest.importorskip("fsspec")
    stores.forget()
    yield "memory://parts"
    fsspec.filesystem("memory").rm("/parts", recursive=True)
    stores.forget()


def test_parts_in_a_store(here: Path, memory: str) -> None:
    deltapack.compress(here / "base", here / "tuned", f"{memory}/x.dpk", recipe=EXACT, max_part_size=1500)
    stores.forget()
    assert deltapack.verify(f"{memory}/x.dpk", here / "base").result_digests
    (here / "back").mkdir()
    deltapack.split(f"{memory}/{INDEX}", here / "back" / "x.dpk", max_part_size=1500)
    for path in (here / INDEX, *parts(here)):
        assert (here / "back" / path.name).read_bytes() == path.read_bytes()
    deltapack.split(here / "whole.dpk", f"{memory}/x.dpk", max_part_size=4000, force=True)
    assert len(json.loads(stores_read(f"{memory}/{INDEX}"))["parts"]) < len(parts(here))
    deltapack.compress(here / "base", here / "tuned", f"{memory}/x.dpk", recipe=EXACT, force=True)
    fsspec = pytest.importorskip("fsspec")
    assert fsspec.filesystem("memory").find("/parts") == ["/parts/x.dpk"]


def stores_read(address: str) -> bytes:
    fsspec = pytest.importorskip("fsspec")
    data: bytes = fsspec.filesystem("memory").cat_file(address.removeprefix("memory:/"))
    return data
