"""A folder of packs: what is found there, when, and how many folders stay open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.adapters import COLUMNS, ROWS, base_model, lora, write_adapter
from support.builders import read_folder, write_folder
from support.shelves import Shelved, shelf_of

import deltapack
from deltapack.errors import BaseMismatchError, NotACheckpointError, NotAPackError, RecipeError
from deltapack.virtual.opened import OpenFolders
from deltapack.virtual.shelf import Shelf


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def shelved(tmp_path_factory: pytest.TempPathFactory) -> Shelved:
    return shelf_of(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def copied(shelved: Shelved, tmp_path: Path) -> Path:
    """The packs in a folder that a test may change."""
    return Path(shutil.copytree(shelved.packs, tmp_path / "packs"))


def test_every_pack_chain_and_recipe_is_a_folder(shelved: Shelved) -> None:
    shelf = Shelf(shelved.base, shelved.packs)
    kinds = {name: (title.kind, [path.name for path in title.paths]) for name, title in shelf.titles().items()}
    assert kinds == {
        "both": ("recipe", ["both.yaml"]),
        "code": ("pack", ["code.dpk"]),
        "math": ("pack", ["math.dpk"]),
        "next": ("chain", ["code.dpk", "next.dpk"]),
    }
    assert list(shelf.damaged()) == ["broken.dpk"] and "broken.dpk" in shelf.damaged()["broken.dpk"]
    for name, written in shelved.written.items():
        with shelf.use(name) as folder:
            assert {file: folder.read(file) for file in folder.names()} == read_folder(written)
    shelf.close()
    with pytest.raises(RecipeError, match="closed"), shelf.use("math"):
        pass


def test_chains_start_where_the_base_stands(shelved: Shelved) -> None:
    """The base is what one of the packs restores: those that follow go on from it."""
    shelf = Shelf(shelved.written["code"], shelved.packs)
    assert [path.name for path in shelf.titles()["next"].paths] == ["next.dpk"]
    with shelf.use("next") as folder:
        wanted = read_folder(shelved.written["next"])
        assert {file: folder.read(file) for file in folder.names() if file.endswith(".safetensors")} == {
            file: data for file, data in wanted.items() if file.endswith(".safetensors")
        }
    with pytest.raises(BaseMismatchError), shelf.use("math") as folder:
        folder.read("model.safetensors")
    shelf.close()


def test_new_packs_appear_and_others_go(shelved: Shelved, copied: Path) -> None:
    clock = Clock()
    shelf = Shelf(shelved.base, copied, clock=clock)
    shutil.copy(copied / "math.dpk", copied / "third.dpk")
    (copied / "next.dpk").unlink()
    (copied / "math.yaml").write_text((copied / "both.yaml").read_text())
    assert "third" not in shelf.titles()
    clock.now = 1.5
    assert list(shelf.titles()) == ["both", "code", "math.dpk", "math.yaml", "third"]
    with pytest.raises(RecipeError, match="no such pack"), shelf.use("next"):
        pass


def test_names_with_two_endings(shelved: Shelved, copied: Path) -> None:
    """One of them hid the other."""
    for name in ("a.dpk", "a.dpk.dpk", "a.yaml", "b.dpk.dpk"):
        shutil.copy(copied / ("both.yaml" if name == "a.yaml" else "math.dpk"), copied / name)
    titles = Shelf(shelved.base, copied).titles()
    assert {name: title.paths[-1].name for name, title in titles.items() if name[0] in "ab"} == {
        **{name: name for name in ("a.dpk", "a.dpk.dpk", "a.yaml")},
        "b.dpk": "b.dpk.dpk",
        "both": "both.yaml",
    }


def test_a_pack_that_is_replaced_is_opened_anew(shelved: Shelved, copied: Path) -> None:
    clock = Clock()
    shelf = Shelf(shelved.base, copied, clock=clock)
    with shelf.use("math") as before:
        shutil.copy(copied / "code.dpk", copied / "new")
        os.replace(copied / "new", copied / "math.dpk")
        clock.now = 2
        with shelf.use("math") as after:
            assert {file: after.read(file) for file in after.names()} == read_folder(shelved.written["code"])
        assert {file: before.read(file) for file in before.names()} == read_folder(shelved.written["math"])
    shelf.close()


def test_an_adapter_that_a_recipe_names_is_replaced(tmp_path: Path) -> None:
    """The recipe and the packs of the folder are the same as before."""
    base, packs = write_folder(tmp_path / "base", base_model()), tmp_path / "packs"
    packs.mkdir()
    recipe = packs / "r.yaml"
    recipe.write_text("merge_method: linear\nmodels: [{model: ad}]\nparameters: {weight: 0.5}\n")
    shelf, etags = Shelf(base, packs, clock=Clock()), set()
    for number in range(2):
        shutil.rmtree(packs / "ad", ignore_errors=True)
        write_adapter(packs / "ad", lora("layer.down", ROWS, COLUMNS), lora_alpha=4 + number)
        found = deltapack.read_merge_file(recipe)
        deltapack.merge(base, found.packs, tmp_path / f"{number}", recipe=found.recipe)
        with shelf.use("r") as folder:
            assert {file: folder.read(file) for file in folder.names()} == read_folder(tmp_path / f"{number}")
            etags.add(folder.etag("model.safetensors"))
    assert len(etags) == 2


def test_packs_in_a_circle_stand_alone(shelved: Shelved, tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    exact = deltapack.Recipe(exact=True)
    for name, start, end in (("to", shelved.base, "code"), ("fro", shelved.written["code"], "base")):
        target = shelved.base if end == "base" else shelved.written[end]
        deltapack.compress(start, target, tmp_path / "packs" / f"{name}.dpk", recipe=exact, allow_unrelated=True)
    shelf = Shelf(shelved.base, tmp_path / "packs")
    assert {title.kind for title in shelf.titles().values()} == {"pack"}
    with shelf.use("to") as folder:
        assert folder.read("model.safetensors") == (shelved.written["code"] / "model.safetensors").read_bytes()
    with shelf.use("fro") as folder, pytest.raises(BaseMismatchError):
        folder.read("model.safetensors")
    shelf.close()


def test_what_is_no_folder_of_packs(shelved: Shelved, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be listed"):
        Shelf(shelved.base, tmp_path / "no")
    with pytest.raises(RecipeError, match="too small"):
        Shelf(shelved.base, shelved.packs, cache=5)


def test_what_is_no_base_is_refused_before_anyone_reads(shelved: Shelved) -> None:
    with pytest.raises(NotACheckpointError, match="packs"):
        Shelf(shelved.packs, shelved.packs)


def test_a_bounded_number_stays_open(shelved: Shelved) -> None:
    folders = OpenFolders(shelved.base, at_once=2)
    packs = [shelved.packs / f"{name}.dpk" for name in ("math", "code")]
    for key in range(5):
        with folders.use(key, packs[key % 2]) as folder:
            assert folder.names()
    assert len(folders) == 2
    with folders.use(1, packs[1]) as one, folders.use(2, packs[0]) as two, folders.use(3, packs[1]) as three:
        assert len(folders) >= 3
        for folder in (one, two, three):
            assert folder.read("config.json")
    assert len(folders) == 2
    with pytest.raises(NotAPackError), folders.use("broken", shelved.packs / "notes.txt"):
        pass
    assert len(folders) == 2
    with folders.use(4, packs[0]) as last:
        folders.close()
        assert last.read("config.json")
    assert len(folders) == 0


def test_what_decodes_may_be_loaded_before_there_are_readers(shelved: Shelved, tmp_path: Path) -> None:
    for packs in (shelved.packs, tmp_path):
        shelf = Shelf(shelved.base, packs)
        shelf.warm()
        assert len(shelf._open) == (packs == shelved.packs)
        shelf.close()
        shelf.warm()
