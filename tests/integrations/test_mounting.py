"""A mounted folder of packs: what the system is told, with FUSE where there is one and without."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from ctypes.util import find_library
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.builders import edited, read_folder, small_model, write_file
from support.commands import Run
from support.mounting import has_fuse, mounted
from support.shelves import Shelved, large_model, shelf_of

import deltapack
from deltapack.errors import BackendError
from deltapack.integrations.fuse import mounting
from deltapack.integrations.fuse.operations import ShelfOperations
from deltapack.virtual.shelf import Shelf


@pytest.fixture(scope="module")
def shelved(tmp_path_factory: pytest.TempPathFactory) -> Shelved:
    return shelf_of(tmp_path_factory.mktemp("mounting"), large_model())


@pytest.fixture
def operations(shelved: Shelved) -> Iterator[ShelfOperations]:
    shelf = Shelf(shelved.base, shelved.packs)
    yield ShelfOperations(shelf, print)
    shelf.close()


def test_files_and_folders(operations: ShelfOperations, shelved: Shelved) -> None:
    assert operations.readdir("/", 0) == [".", "..", "both", "code", "math", "next"]
    for name, written in shelved.written.items():
        wanted = read_folder(written)
        assert operations.readdir(f"/{name}", 0)[2:] == sorted(wanted)
        for file, data in wanted.items():
            path = f"/{name}/{file}"
            status = operations.getattr(path)
            assert status["st_size"] == len(data) and status["st_mode"] == stat.S_IFREG | 0o444 and status["st_mtime"] > 0
            assert operations.open(path, os.O_RDONLY) == 0
            assert b"".join(operations.read(path, 131072, start, 0) for start in range(0, len(data) + 1, 131072)) == data
    assert operations.getattr("/math")["st_mode"] == stat.S_IFDIR | 0o555
    assert operations.statfs("/")["f_bfree"] == 0


def test_sub_folders(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        (tmp_path / name / "unet").mkdir(parents=True)
        write_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors", small_model(seed))
        (tmp_path / name / "model_index.json").write_text("{}")
    (tmp_path / "packs").mkdir()
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "packs" / "a.dpk", allow_unrelated=True)
    shelf = Shelf(tmp_path / "base", tmp_path / "packs")
    operations = ShelfOperations(shelf, print)
    assert operations.readdir("/a", 0) == [".", "..", "model_index.json", "unet"]
    assert operations.readdir("/a/unet", 0) == [".", "..", "diffusion_pytorch_model.safetensors"]
    assert operations.getattr("/a/unet")["st_mode"] == stat.S_IFDIR | 0o555
    shelf.close()


@pytest.mark.parametrize("path", ["/no", "/math/no", "/math/no/x", "/math/model.safetensors/x", "/../base"])
def test_paths_that_are_none(path: str, operations: ShelfOperations) -> None:
    for call in (operations.getattr, lambda path: operations.read(path, 1, 0, 0), lambda path: operations.open(path, 0)):
        with pytest.raises(OSError) as caught:
            call(path)
        assert caught.value.errno == errno.ENOENT


def test_nothing_is_written(operations: ShelfOperations) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError) as caught:
            operations.open("/math/config.json", flags)
        assert caught.value.errno == errno.EROFS
    with pytest.raises(IsADirectoryError):
        operations.read("/", 1, 0, 0)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    shelved = shelf_of(tmp_path)
    tensors = small_model()
    tensors["layer.bias"] = edited(tensors["layer.bias"], 5, 7)
    write_file(shelved.base / "model.safetensors", tensors)
    said: list[str] = []
    shelf = Shelf(shelved.base, shelved.packs)
    with pytest.raises(OSError) as caught:
        ShelfOperations(shelf, said.append).read("/math/model.safetensors", 1 << 20, 0, 0)
    assert caught.value.errno == errno.EIO and "layer.bias" in said[0] and said[0].startswith("/math/model.safetensors: ")
    shelf.close()


@pytest.mark.parametrize(
    ("fault", "what"),
    [(ImportError("no mfusepy"), "needs mfusepy"), (OSError("Unable to find libfuse"), "needs libfuse"), (None, "needs the device")],
)
def test_what_is_missing_has_a_sentence(
    fault: Exception | None, what: str, shelved: Shelved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        """Finds mfusepy, which then fails."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "mfusepy" and fault is not None:
                raise fault

    monkeypatch.delitem(sys.modules, "mfusepy", raising=False)
    if fault is None:
        monkeypatch.setitem(sys.modules, "mfusepy", sys)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.setattr(mounting, "_DEVICE", tmp_path / "no")
    with pytest.raises(BackendError, match=what):
        mounting.mount(Shelf(shelved.base, shelved.packs), tmp_path)
    done = Run()("mount", shelved.base, shelved.packs, tmp_path)
    assert done.exit_code == 5 and what in " ".join(done.stderr.split()) and "serve-files" in done.stderr


@pytest.mark.parametrize(("code", "fails"), [(8, False), (1, True)])
def test_a_signal_is_an_end(code: int, fails: bool, shelved: Shelved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*arguments: object, **options: object) -> None:
        raise RuntimeError(code)

    monkeypatch.setitem(sys.modules, "mfusepy", SimpleNamespace(FUSE=ends, Operations=object))
    monkeypatch.setattr(mounting, "_DEVICE", tmp_path)
    shelf = Shelf(shelved.base, shelved.packs)
    with pytest.raises(BackendError, match="did not mount it: found code 1") if fails else nullcontext():
        mounting.mount(shelf, tmp_path)
    shelf.close()


@pytest.mark.skipif(not has_fuse(), reason="there is no FUSE here")
@pytest.mark.parametrize("library", ["fuse", "fuse3"])
def test_real_clients_of_a_mounted_folder(library: str, shelved: Shelved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    if find_library(library) is None:
        pytest.skip(f"there is no lib{library} here")
    monkeypatch.setenv("FUSE_LIBRARY_NAME", library)
    with mounted(shelved.base, shelved.packs, tmp_path / "mnt") as where:
        for name, written in shelved.written.items():
            assert read_folder(where / name) == read_folder(written)
        with safe_open(where / "code" / "model.safetensors", "np") as file:
            found = file.get_tensor("b.norm.weight")
            part = file.get_slice("z.weight")[10:20]
        with safe_open(shelved.written["code"] / "model.safetensors", "np") as file:
            assert np.array_equal(found, file.get_tensor("b.norm.weight"))
            assert np.array_equal(part, file.get_slice("z.weight")[10:20])
        copied = Path(shutil.copytree(where / "next", tmp_path / "copied"))
        assert read_folder(copied) == read_folder(shelved.written["next"])
        with pytest.raises(OSError):
            (where / "math" / "new").write_text("")
        shutil.copy(shelved.packs / "math.dpk", shelved.packs / "later.dpk")
        try:
            for _ in range(1000):
                if (where / "later").is_dir():
                    break
                time.sleep(0.02)
            assert (where / "later" / "model.safetensors").read_bytes() == (where / "math" / "model.safetensors").read_bytes()
        finally:
            (shelved.packs / "later.dpk").unlink()
