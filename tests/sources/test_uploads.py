"""Packs and checkpoints written to object stores: there as a whole or not at all, replaced only where this program wrote them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.builders import small_model, tuned_model, write_folder

import deltapack
from deltapack.checkpoint import uploading
from deltapack.errors import CheckpointError, OutputError, RecipeError, SourceError
from deltapack.reports import Traffic, watch_traffic
from deltapack.sources import objects, sending, stores
from deltapack.sources.urls import parse_url

BIG = random.Random(3).randbytes(40_000_000)
EXACT = deltapack.Recipe(exact=True)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with `base`, `tuned` and `here.dpk`."""
    write_folder(tmp_path / "base", small_model(), {"config.json": "{}"})
    write_folder(tmp_path / "tuned", tuned_model(small_model()), {"config.json": '{"a": 1}'})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "here.dpk", recipe=EXACT)
    return tmp_path


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, with a place `m`."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    yield system
    for name in system.ls("/"):
        system.rm(name["name"] if isinstance(name, dict) else name, recursive=True)
    stores.forget()


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"{code}")
        self.code = code


class Faulty:
    """A store that fails when it is told to: by method of S3, what is raised, one after the other."""

    def __init__(self, system: Any, fails: dict[str, list[BaseException]]) -> None:
        self._system, self.fails = system, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def call_s3(self, method: str, **how: Any) -> Any:
        if self.fails.get(method):
            raise self.fails[method].pop(0)
        return self._system.call_s3(method, **how)


def keys(s3: Any) -> list[str]:
    return sorted(row["Key"] for row in s3.list_objects_v2(Bucket="models").get("Contents", []))


def begun(s3: Any) -> list[str]:
    return [row["Key"] for row in s3.list_multipart_uploads(Bucket="models").get("Uploads", [])]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_digest_that_the_store_tells_is_compared(memory: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gcsfs does."""
    told = {"md5Hash": base64.b64encode(hashlib.md5((here / "here.dpk").read_bytes()).digest()).decode()}
    info = type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda self, path, **how: info(self, path, **how) | told)
    url = parse_url("memory://m/there.dpk")
    assert url is not None
    sending.send_file(here / "here.dpk", url)
    told["md5Hash"] = "AAAA"
    with pytest.raises(SourceError, match=r"the store has other bytes than were sent: expected .*==, found AAAA"):
        sending.send_file(here / "here.dpk", url)


def test_packs_and_folders_are_what_they_are_here(s3: Any, here: Path) -> None:
    deltapack.compress(here / "base", here / "tuned", "s3://models/packs/there.dpk", recipe=EXACT)
    assert s3.get_object(Bucket="models", Key="packs/there.dpk")["Body"].read() == (here / "here.dpk").read_bytes()
    deltapack.apply(here / "base", here / "here.dpk", here / "out")
    report = deltapack.apply(here / "base", "s3://models/packs/there.dpk", "s3://models/out")
    assert str(report.out) == "s3://models/out" and report.written
    there = {key.removeprefix("out/"): s3.get_object(Bucket="models", Key=key)["Body"].read() for key in keys(s3) if key[:4] == "out/"}
    assert there == content(here / "out") and ".deltapack.json" in there and not begun(s3)
    assert not deltapack.apply(here / "base", here / "here.dpk", "s3://models/out").written  # all of it is there
    deltapack.merge(here / "base", [here / "here.dpk"], "s3://models/merged.safetensors", weights=[0.5])
    deltapack.merge(here / "base", [here / "here.dpk"], here / "merged.safetensors", weights=[0.5])
    merged = s3.get_object(Bucket="models", Key="merged.safetensors")["Body"].read()
    assert merged == (here / "merged.safetensors").read_bytes()


def test_shards_are_sent_one_by_one(s3: Any, here: Path) -> None:
    deltapack.apply(here / "base", here / "here.dpk", here / "out", max_shard_size=2000)
    deltapack.apply(here / "base", here / "here.dpk", "s3://models/a/out", max_shard_size=2000)
    assert len(keys(s3)) > 5
    there = {key.removeprefix("a/out/"): s3.get_object(Bucket="models", Key=key)["Body"].read() for key in keys(s3)}
    assert there == content(here / "out")
    with pytest.raises(OutputError, match="the output exists"):
        deltapack.apply(here / "base", here / "here.dpk", "s3://models/a/out", weight=0.5)
    deltapack.apply(here / "base", here / "here.dpk", "s3://models/a/out", weight=0.5, force=True)
    assert len(keys(s3)) < 5, "shards of the layout before are gone"


def test_what_others_wrote_stays(memory: Any, here: Path) -> None:
    def run(**how: Any) -> None:
        deltapack.apply(here / "base", here / "here.dpk", "memory://m/out", weight=0.5, **how)

    memory.pipe_file("/m/out/mine.txt", b"mine")
    with pytest.raises(OutputError, match=r"no list of what a checkpoint of deltapack wrote there .*found mine\.txt"):
        run(force=True)
    memory.rm("/m/out/mine.txt")
    run()
    memory.pipe_file("/m/out/sub/mine.txt", b"mine")
    with pytest.raises(OutputError, match=r"did not write: found sub/mine\.txt"):
        run(force=True)
    memory.rm("/m/out/sub/mine.txt")
    memory.pipe_file("/m/out/config.json", b"[]")
    with pytest.raises(OutputError, match=r"changed since they were written: found config\.json"):
        run(force=True)
    assert memory.cat_file("/m/out/config.json") == b"[]"
    memory.pipe_file("/m/x.dpk", b"no pack at all")
    with pytest.raises(OutputError, match="the output exists and is no pack"):
        deltapack.compress(here / "base", here / "tuned", "memory://m/x.dpk", force=True)
    with pytest.raises(OutputError, match="the output exists"):
        deltapack.compress(here / "base", here / "tuned", "memory://m/x.dpk")
    memory.pipe_file("/m/y.safetensors", b"mine")
    with pytest.raises(OutputError, match="a file that deltapack did not write"):
        deltapack.apply(here / "base", here / "here.dpk", "memory://m/y.safetensors", force=True)
    memory.pipe_file("/m/z.dpk/a", b"")
    with pytest.raises(OutputError, match="the output is a folder"):
        deltapack.compress(here / "base", here / "tuned", "memory://m/z.dpk")


def test_an_unfinished_folder_says_so_and_is_replaced(memory: Any, here: Path) -> None:
    def run(**how: Any) -> None:
        deltapack.apply(here / "base", here / "here.dpk", "memory://m/out", **how)

    names = ["model-00001-of-00009.safetensors", "config.json"]
    memory.pipe_file("/m/out/.deltapack.begun.json", json.dumps({"deltapack": 1, "kind": "upload", "files": names}).encode())
    memory.pipe_file(f"/m/out/{names[0]}", b"half")
    memory.pipe_file("/m/out/mine.txt", b"mine")
    with pytest.raises(CheckpointError, match="the upload of this folder was not finished"):
        deltapack.compress("memory://m/out", here / "tuned", here / "x.dpk")
    with pytest.raises(OutputError, match=r"did not write: found mine\.txt"):
        run()
    memory.rm("/m/out/mine.txt")
    run()
    left = {name.rpartition("/")[2] for name in memory.find("/m/out")}
    assert left == {path.name for path in (here / "tuned").iterdir()} | {".deltapack.json"}
    memory.pipe_file("/m/out/.deltapack.begun.json", b"[")
    with pytest.raises(OutputError, match="list of an unfinished upload cannot be read"):
        run()


def test_a_large_file_goes_in_parts(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, url, told = tmp_path / "big", parse_url("s3://models/big"), list[Traffic]()
    path.write_bytes(BIG)
    faulty = Faulty(objects._system("s3"), {"upload_part": [Refused(503), ConnectionError(), TimeoutError()]})
    monkeypatch.setattr(objects, "_system", cache(lambda scheme: faulty))
    with watch_traffic(told.append):
        sending.send_file(path, url)
    assert s3.get_object(Bucket="models", Key="big")["Body"].read() == BIG and not begun(s3)
    assert max(traffic.sent for traffic in told) == len(BIG) and told[0] == Traffic(0, 0, len(BIG))


@pytest.mark.parametrize(
    ("method", "raised", "match"),
    [
        ("upload_part", [Refused(503)] * 99, "the file cannot be written: found Refused 503, 6 tries"),
        ("upload_part", [Refused(403)], "the store refuses"),
        ("complete_multipart_upload", [ValueError("what")], "the store cannot be written to: found ValueError: what"),
        ("upload_part", [KeyboardInterrupt()], None),
    ],
)
def test_an_upload_that_fails_leaves_nothing(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, raised: list[BaseException], match: str | None
) -> None:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    s3.put_object(Bucket="models", Key="big", Body=b"before")
    faulty = Faulty(objects._system("s3"), {method: raised})
    monkeypatch.setattr(objects, "_system", cache(lambda scheme: faulty))
    with pytest.raises((SourceError, KeyboardInterrupt), match=match):
        sending.send_file(path, parse_url("s3://models/big"))
    assert s3.get_object(Bucket="models", Key="big")["Body"].read() == b"before" and not begun(s3)


def test_a_folder_that_fails_leaves_nothing(s3: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Faulty(objects._system("s3"), {})
    calls = iter(range(1, 99))
    real = faulty._system.call_s3

    def call(method: str, **how: Any) -> Any:
        if method == "put_object" and next(calls) == 5:
            raise Refused(403)
        return real(method, **how)

    faulty.call_s3 = call  # type: ignore[method-assign]
    monkeypatch.setattr(objects, "_system", cache(lambda scheme: faulty))
    with pytest.raises(SourceError, match="the store refuses"):
        deltapack.apply(here / "base", here / "here.dpk", "s3://models/out", max_shard_size=2000)
    assert keys(s3) == [] and next(calls) > 5


def test_a_killed_upload_is_dropped_by_the_next(s3: Any, here: Path) -> None:
    s3.create_multipart_upload(Bucket="models", Key="x.dpk")
    s3.create_multipart_upload(Bucket="models", Key="x.dpk2")
    s3.create_multipart_upload(Bucket="models", Key="out/model-00001-of-00002.safetensors")
    deltapack.compress(here / "base", here / "tuned", "s3://models/x.dpk")
    deltapack.apply(here / "base", here / "here.dpk", "s3://models/out")
    assert begun(s3) == ["x.dpk2"]


def test_bad_places(s3: Any, here: Path) -> None:
    with pytest.raises(OutputError, match="the bucket does not exist"):
        deltapack.compress(here / "base", here / "tuned", "s3://nowhere/x.dpk")
    with pytest.raises(OutputError, match="the output has no name"):
        deltapack.apply(here / "base", here / "here.dpk", "s3://models")
    with pytest.raises(RecipeError, match=r"outputs are written to this machine, s3:// or gs://"):
        deltapack.apply(here / "base", here / "here.dpk", "https://example.org/out")
    with pytest.raises(RecipeError, match="deltapack push"):
        deltapack.compress(here / "base", here / "tuned", "hf://org/name")
    deltapack.apply(here / "base", here / "here.dpk", "s3://models/out")
    with pytest.raises(OutputError, match="the output lies in one of the inputs"):
        deltapack.apply("s3://models/out", here / "here.dpk", "s3://models/out/sub")


SLOW = """
import itertools, os, sys
from deltapack.checkpoint import uploading
from deltapack.cli.main import main
begun, real = itertools.count(), uploading.send_file
def send_file(path, url, stopped):
    if next(begun) >= 2:  # counted before, as two are sent at once
        os.write(1, b"waits\\n")
        stopped.wait(120)
    real(path, url)
uploading.send_file = send_file
sys.argv[0] = "deltapack"
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals of POSIX")
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_a_process_that_is_stopped_in_the_middle(s3: Any, here: Path, signal_name: str) -> None:
    arguments = ["apply", "base", "here.dpk", "-o", "s3://models/out", "--max-shard-size", "2000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(deltapack.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], cwd=here, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline().strip() == b"waits"
    process.send_signal(getattr(signal, signal_name))
    process.communicate(timeout=60)
    stores.forget()
    if signal_name == "SIGINT":
        assert process.returncode == 130 and keys(s3) == [] and not begun(s3)
    else:
        assert "out/.deltapack.begun.json" in keys(s3) and "out/.deltapack.json" not in keys(s3)
        with pytest.raises(CheckpointError, match="the upload of this folder was not finished"):
            deltapack.compress("s3://models/out", here / "tuned", here / "x.dpk")
    deltapack.apply(here / "base", here / "here.dpk", "s3://models/out")
    assert {key.removeprefix("out/") for key in keys(s3)} == {path.name for path in (here / "tuned").iterdir()} | {".deltapack.json"}


def test_the_disk_holds_few_shards(memory: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    real = sending.send_file

    def blocks(path: Path) -> int:
        with suppress(FileNotFoundError):  # sent by now
            return path.stat().st_blocks
        return 0

    def send_file(path: Path, url: Any, stopped: Any) -> None:
        held.append(sum(blocks(file) > 100 for file in path.parent.glob("*.safetensors")))  # one has 200, an empty one its header
        real(path, url, stopped)

    monkeypatch.setattr(uploading, "send_file", send_file)
    (here / "deep").mkdir()
    names = [f"model-{number:05d}-of-00012.safetensors" for number in range(1, 13)]
    for number, name in enumerate(names):  # layer 10 comes before layer 2 by name, and not by file
        save = {f"layer.{2 * number + half}": np.full((50, 256), number, np.float32) for half in range(2)}
        (here / "deep" / name).write_bytes(safetensors.numpy.save(save))
    tensors = {f"layer.{number}": names[number // 2] for number in range(24)}
    (here / "deep" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": tensors}))
    deltapack.compress(here / "deep", here / "deep", here / "deep.dpk", recipe=EXACT)
    deltapack.apply(here / "deep", here / "deep.dpk", "memory://m/deep", workers=1)
    assert len(held) == 13 and 1 <= max(held) <= 4


def test_the_store_copies_files_that_stay(s3: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, places in (("base", (0, 0)), ("tuned", (0, 1))):
        (here / f"{name} of two").mkdir()
        for number, change in enumerate(places):
            data = safetensors.numpy.save({f"w{number}": np.arange(500_000, dtype=np.float32) + change}, {"format": "pt"})
            (here / f"{name} of two" / f"model-0000{number + 1}-of-00002.safetensors").write_bytes(data)
        names = {f"w{number}": f"model-0000{number + 1}-of-00002.safetensors" for number in range(2)}
        text = json.dumps({"metadata": {}, "weight_map": names})
        (here / f"{name} of two" / "model.safetensors.index.json").write_text(text)
    for path in (here / "base of two").iterdir():
        s3.put_object(Bucket="models", Key=f"base/{path.name}", Body=path.read_bytes())
    deltapack.compress(here / "base of two", here / "tuned of two", here / "two.dpk", recipe=EXACT)
    sent: list[str] = []
    real = sending.send_file

    def send_file(path: Path, url: Any, stopped: Any) -> None:
        sent.append(path.name)
        real(path, url, stopped)

    monkeypatch.setattr(uploading, "send_file", send_file)
    for verify in (True, False):
        sent.clear()
        deltapack.apply("s3://models/base", here / "two.dpk", "s3://models/out", verify=verify)
        assert ("model-00001-of-00002.safetensors" in sent) == verify and "model-00002-of-00002.safetensors" in sent
        for path in (here / "tuned of two").iterdir():
            assert s3.get_object(Bucket="models", Key=f"out/{path.name}")["Body"].read() == path.read_bytes()
        for key in keys(s3):
            if key.startswith("out/"):
                s3.delete_object(Bucket="models", Key=key)
        stores.forget()
