"""An object store that runs here: moto's, asked through s3fs; and a store of Google, played."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.builders import read_model, small_model, tuned_model, write_folder

import deltapack
from deltapack.checkpoint.files import open_to_read
from deltapack.errors import BackendError, SourceError
from deltapack.sources import objects, stores
from deltapack.sources.remote_path import RemotePath

DATA = random.Random(2).randbytes(12_000_000)


def upload(s3: Any, folder: Path, name: str) -> str:
    for path in sorted(folder.rglob("*") if folder.is_dir() else [folder]):
        if path.is_file():
            key = name if path == folder else f"{name}/{path.relative_to(folder).as_posix()}"
            s3.put_object(Bucket="models", Key=key, Body=path.read_bytes())
    return f"s3://models/{name}"


def test_folders_and_files(s3: Any) -> None:
    for key, body in (("a/config.json", b"{}"), ("a/sub/x?y #.bin", DATA), ("a/empty", b"")):
        s3.put_object(Bucket="models", Key=key, Body=body)
    folder = RemotePath.of("s3://models/a/")
    assert folder.is_dir() and [path.name for path in folder.iterdir()] == ["config.json", "empty", "sub"]
    assert (folder / "config.json").read_bytes() == b"{}" and (folder / "empty").read_bytes() == b""
    assert (folder / "sub").is_dir() and not (folder / "none").exists() and not RemotePath.of("s3://nothing/a").exists()
    file = folder / "sub" / "x?y #.bin"
    assert file.stat().st_size == len(DATA) and file.stat().st_mtime > 1e9 and RemotePath.of("s3://models").is_dir()
    with closing(open_to_read(file)) as opened:
        assert opened.read(3, 11_000_000) == DATA[3:11_000_003]


def test_an_object_that_is_written_again_or_removed_is_noticed(s3: Any) -> None:
    path = RemotePath.of("s3://models/x.bin")
    s3.put_object(Bucket="models", Key="x.bin", Body=DATA)
    with closing(open_to_read(path)) as file:
        assert file.read(0, 10) == DATA[:10]
        s3.put_object(Bucket="models", Key="x.bin", Body=DATA[::-1])
        with pytest.raises(SourceError, match="the file changed while it was read"):
            file.read(5_000_000, 10)
        s3.delete_object(Bucket="models", Key="x.bin")
        with pytest.raises(SourceError, match="that it is gone"):
            file.read(9_000_000, 10)


def test_a_pack_is_made_and_applied_there(s3: Any, tmp_path: Path) -> None:
    base, tuned = small_model(), tuned_model(small_model())
    write_folder(tmp_path / "base", base, {"config.json": "{}"})
    write_folder(tmp_path / "tuned", tuned, {"config.json": '{"a": 1}'})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "here.dpk", recipe=deltapack.Recipe(exact=True))
    there = upload(s3, tmp_path / "base", "base"), upload(s3, tmp_path / "tuned", "tuned")
    deltapack.compress(*there, tmp_path / "there.dpk", recipe=deltapack.Recipe(exact=True))
    assert (tmp_path / "there.dpk").read_bytes() == (tmp_path / "here.dpk").read_bytes()
    deltapack.apply(there[0], upload(s3, tmp_path / "here.dpk", "packs/here.dpk"), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == '{"a": 1}'
    assert read_model(tmp_path / "out" / "model.safetensors").keys() == tuned.keys()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "tuned" / name).read_bytes()


class Played:
    """A store of Google with generations, as gcsfs shows one; and what goes wrong there."""

    def __init__(self) -> None:
        self.content = {"b/x.bin": ("1", DATA)}
        self.fails: list[Exception] = []

    def info(self, key: str) -> dict[str, Any]:
        if key not in self.content:
            raise FileNotFoundError(key)
        generation, data = self.content[key]
        return {"type": "file", "name": key, "size": len(data), "generation": generation, "etag": "x"}

    def cat_file(self, key: str, start: int, end: int, generation: str) -> bytes:
        if self.fails:
            raise self.fails.pop(0)
        if self.content[key][0] != generation:
            raise FileNotFoundError(key)
        return self.content[key][1][start:end]


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__("secret\nmore")
        self.code = code


def test_a_generation_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Played()
    monkeypatch.setattr(objects, "_system", lambda scheme: store)
    with closing(open_to_read(RemotePath.of("gs://b/x.bin"))) as file:
        store.fails = [Refused(503), TimeoutError(), ConnectionError(), Refused(429)]
        assert file.read(1, 100) == DATA[1:101] and not store.fails
        store.fails = [Refused(401)]
        with pytest.raises(SourceError, match=r"the store refuses: found Refused\. Are the credentials right"):
            file.read(1_000_000, 1)
        store.fails = [Refused(412)]
        with pytest.raises(SourceError, match="changed while it was read"):
            file.read(1_000_000, 1)
        store.fails = [ValueError("what\nelse")]
        with pytest.raises(SourceError, match="cannot be read: found ValueError: what"):
            file.read(1_000_000, 1)
        store.fails = [Refused(503)] * 6
        with pytest.raises(SourceError, match="Refused 503, 6 tries"):
            file.read(1_000_000, 1)
        store.content["b/x.bin"] = ("2", DATA)
        with pytest.raises(SourceError, match="that it is gone"):
            file.read(2_000_000, 1)


def test_a_store_that_cannot_be_asked_for_a_version_is_asked_after_each_read() -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe_file("/m/x.bin", DATA)
    path = RemotePath.of("memory://m/x.bin")
    try:
        assert [found.name for found in path.parent.iterdir()] == ["x.bin"] and path.parent.is_dir()
        with closing(open_to_read(path)) as file:
            assert file.read(5, 100) == DATA[5:105]
            system.pipe_file("/m/x.bin", DATA)
            with pytest.raises(SourceError, match="changed while it was read"):
                file.read(1_000_000, 100)
        stores.forget()
    finally:
        system.rm("/m", recursive=True)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")

    def missing(scheme: str, **_: Any) -> Any:
        raise ImportError("Please install gcsfs")

    objects._system.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(BackendError, match=r"gs:// needs gcsfs: found Please install gcsfs\. pip install 'deltapack\[remote\]'"):
        open_to_read(RemotePath.of("gs://b/x.bin"))
