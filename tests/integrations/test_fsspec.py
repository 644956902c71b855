"""`deltapack://` in fsspec: files, ranges and listings are those of what packs restore."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load
from support.builders import read_folder
from support.shelves import Shelved, shelf_of

import deltapack
from deltapack.errors import BaseMismatchError, FormatError, RecipeError, UnsupportedError

fsspec = pytest.importorskip("fsspec")
filesystem = pytest.importorskip("deltapack.integrations.fsspec").DeltapackFileSystem


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """As the entry point of an installation says it."""
    fsspec.register_implementation("deltapack", filesystem, clobber=True)
    yield
    filesystem.clear_instance_cache()


@pytest.fixture(scope="module")
def shelved(tmp_path_factory: pytest.TempPathFactory) -> Shelved:
    return shelf_of(tmp_path_factory.mktemp("fsspec"))


def test_packs_of_other_machines(shelved: Shelved) -> None:
    data = (shelved.packs / "math.dpk").read_bytes()
    fsspec.filesystem("memory").pipe("/shelf/math.dpk", data)
    fs = fsspec.filesystem("deltapack", base=shelved.base, packs="memory://shelf/math.dpk")
    assert fs.cat_file("model.safetensors") == read_folder(shelved.written["math"])["model.safetensors"]
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("deltapack", base=shelved.base, packs="memory://shelf/no.dpk").cat_file("model.safetensors")


def test_a_pack_that_the_path_names(shelved: Shelved) -> None:
    fs = fsspec.filesystem("deltapack", base=shelved.base)
    root = f"{shelved.packs}/math.dpk"
    found = {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}
    assert found == read_folder(shelved.written["math"])
    data = found["model.safetensors"]
    path = f"{root}/model.safetensors"
    assert fs.info(path) == {"name": path, "size": len(data), "type": "file"} and fs.size(path) == len(data)
    assert fs.cat_file(path, 10, 20) == data[10:20] and fs.cat_file(path, -5) == data[-5:] and fs.cat_file(path, 5, -5) == data[5:-5]
    assert fs.cat_file(path, 20, 10) == b""
    assert fs.isdir(root) and fs.isfile(path) and fs.exists(path) and not fs.exists(f"{root}/no") and not fs.exists(f"{root}x/no")
    packs = [f"{shelved.packs}/{name}" for name in ("both.yaml", "broken.dpk", "code.dpk", "math.dpk", "next.dpk")]
    assert [name for name in fs.ls(str(shelved.packs), detail=False) if "/." not in name] == packs
    with fs.open(path, "rb") as file:
        file.seek(1000)
        assert file.read(50) == data[1000:1050] and file.seek(-3, 2) == len(data) - 3 and file.read() == data[-3:]
    assert fs.ukey(path) == fs.checksum(path) != fs.ukey(f"{root}/config.json")


def test_urls(shelved: Shelved) -> None:
    wanted = (shelved.written["both"] / "model.safetensors").read_bytes()
    url = f"deltapack://{shelved.packs}/both.yaml/model.safetensors"
    with fsspec.open(url, base=str(shelved.base)) as file:
        assert file.read() == wanted
    with fsspec.open(f"{url}?base={shelved.base}") as file:
        assert file.read() == wanted
    fs, path = fsspec.core.url_to_fs(f"{url}?base={shelved.base}")
    assert fs.cat_file(path, 3, 9) == wanted[3:9]
    assert fs.cat_file(fs.unstrip_protocol(path)) == wanted
    with fsspec.open(f"simplecache::{url}", deltapack={"base": str(shelved.base)}) as file:
        assert file.read() == wanted


def test_packs_that_are_given(shelved: Shelved, tmp_path: Path) -> None:
    chain = [str(shelved.packs / name) for name in ("code.dpk", "next.dpk")]
    fs = fsspec.filesystem("deltapack", base=str(shelved.base), packs=chain)
    assert {path: fs.cat_file(path) for path in fs.find("")} == read_folder(shelved.written["next"])
    assert sorted(fs.ls("", detail=False)) == sorted(read_folder(shelved.written["next"]))
    assert fs.isdir("") and fs.info("model.safetensors")["type"] == "file"
    fs.get("", str(tmp_path / "got"), recursive=True)
    assert read_folder(tmp_path / "got") == read_folder(shelved.written["next"])
    both = [shelved.packs / "math.dpk", shelved.packs / "code.dpk"]
    deltapack.merge(shelved.base, both, tmp_path / "sum", weights=[0.25, 2])
    fs = fsspec.filesystem("deltapack", base=shelved.base, packs=list(map(str, both)), weights=[0.25, 2])
    assert load(fs.cat_file("model.safetensors")).keys() == load((tmp_path / "sum" / "model.safetensors").read_bytes()).keys()
    assert fs.cat_file("model.safetensors") == (tmp_path / "sum" / "model.safetensors").read_bytes()


def test_a_pack_that_a_recipe_names_is_replaced(shelved: Shelved, tmp_path: Path) -> None:
    packs = Path(shutil.copytree(shelved.packs, tmp_path / "packs"))
    fs, path = fsspec.filesystem("deltapack", base=shelved.base), f"{packs}/both.yaml/model.safetensors"
    assert fs.cat_file(path) == (shelved.written["both"] / "model.safetensors").read_bytes()
    shutil.copy(packs / "math.dpk", packs / "code.dpk")
    found = deltapack.read_merge_file(packs / "both.yaml")
    deltapack.merge(shelved.base, found.packs, tmp_path / "merged", recipe=found.recipe)
    assert fs.cat_file(path) == (tmp_path / "merged" / "model.safetensors").read_bytes()


def test_a_pack_that_is_replaced_is_read_anew(shelved: Shelved, tmp_path: Path) -> None:
    fs = fsspec.filesystem("deltapack", base=shelved.base)
    path = shutil.copy(shelved.packs / "math.dpk", tmp_path / "a.dpk")
    before = fs.cat_file(f"{path}/config.json")
    Path(path).unlink()
    shutil.copy(shelved.packs / "code.dpk", tmp_path / "a.dpk")
    assert before != fs.cat_file(f"{path}/config.json") == (shelved.written["code"] / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "error"), [({}, RecipeError), ({"base": "x", "weights": 2}, RecipeError), ({"base": "x", "cache": "1KB"}, RecipeError)]
)
def test_options_that_are_wrong(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        fsspec.filesystem("deltapack", **options)


def test_what_cannot_be_read(shelved: Shelved, tmp_path: Path) -> None:
    fs = fsspec.filesystem("deltapack", base=shelved.base)
    pack = f"{shelved.packs}/math.dpk"
    with pytest.raises(UnsupportedError, match="only reads"):
        fs.open(f"{pack}/new", "wb")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{pack}/no")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{tmp_path}/no.dpk/model.safetensors")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{tmp_path}/model.safetensors")
    with pytest.raises(IsADirectoryError):
        fs.open(pack)
    with pytest.raises(FormatError):
        (tmp_path / "a.dpk").write_text("no pack")
        fs.ls(f"{tmp_path}/a.dpk")
    other = fsspec.filesystem("deltapack", base=shelved.written["math"])
    with pytest.raises(BaseMismatchError):
        other.cat_file(f"{pack}/model.safetensors")


def test_the_entry_point_names_the_class() -> None:
    root = Path(deltapack.__file__).parents[1]
    text = (root / "pyproject.toml").read_text("utf-8")
    module, _, name = text.split('[project.entry-points."fsspec.specs"]\ndeltapack = "')[1].split('"')[0].partition(":")
    assert (module, name) == (filesystem.__module__.rpartition(".")[0], filesystem.__name__)
