"""An output that has its name is on the disk: each file, then each folder, then the name, and only then may the old one go."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import syncs
from support.builders import leftovers, moved, random_tensor, write_folder
from support.local_files import open_local

import deltapack
from deltapack.checkpoint import files, open_writer, plan_shards
from deltapack.checkpoint.files import WriteFile
from deltapack.dtypes import BY_NAME
from deltapack.format import placing
from deltapack.format.atomic import atomic_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
F32 = BY_NAME["f32"]
SHARDS = plan_shards([("a", F32, (2, 3)), ("b", F32, (4,)), ("c", F32, (5,))], max_shard_size=24)


def write(out: Path, *, number: float = 1, force: bool = False) -> None:
    """Three shards, their index and side files, one of them in a folder; of a single file, that."""
    with open_writer(out, SHARDS, force=force, metadata={"": {"deltapack.version": "0"}}) as writer:
        for name, count in (("c", 5), ("b", 4), ("a", 6)):
            writer.write(name, 0, np.full(count, number, "<f4"))
        for name in ("config.json", "1_Pooling/config.json", "2_Dense/deeper/config.json"):
            writer.write_side_file(name, f"{number} {name}".encode())


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
@pytest.mark.parametrize("old", ["nothing", "empty", "old", "old without exchange"])
def test_checkpoints(name: str, old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / name
    if old.startswith("old"):
        write(out, number=2)
    elif old == "empty" and name == "out":
        out.mkdir()
    if old.endswith("exchange"):
        monkeypatch.setattr(placing, "_renameat2", lambda one, other, flags: False)
    journal = syncs.record(monkeypatch)
    write(out, force=True)
    monkeypatch.undo()
    journal.check(out)
    assert sorted(os.listdir(tmp_path)) == [name]
    if name == "out":
        assert len(list(out.rglob("*"))) == 11
    else:
        assert "remove" not in {event.what for event in journal.events}


@pytest.mark.parametrize("old", [False, True])
def test_files(old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        (tmp_path / "out").write_bytes(b"old")
    journal = syncs.record(monkeypatch)
    with atomic_file(tmp_path / "out", force=True) as file:
        file.write(b"first")
        file.write(b"second")
        file.seek(2)
        file.write(b"third")
    monkeypatch.undo()
    journal.check(tmp_path / "out")


@pytest.mark.parametrize("verb", ["compress", "apply", "apply to a file", "merge", "merge to a pack"])
def test_use_cases(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"a": random_tensor(1, (30, 20)), "b": random_tensor(2, (9,))}
    write_folder(tmp_path / "base", base)
    packs = []
    for seed in (1, 2):
        tuned = {name: moved(tensor, seed) for name, tensor in base.items()}
        write_folder(tmp_path / f"{seed}", tuned, {"tokenizer.json": "x", "1_Pooling/config.json": "{}"})
        packs.append(tmp_path / f"{seed}.dpk")
        deltapack.compress(tmp_path / "base", tmp_path / f"{seed}", packs[-1])
    out = tmp_path / {"compress": "3.dpk", "apply": "3", "apply to a file": "3.safetensors", "merge": "3", "merge to a pack": "3.dpk"}[verb]
    journal = syncs.record(monkeypatch)
    if verb == "compress":
        deltapack.compress(tmp_path / "base", tmp_path / "1", out)
    elif verb.startswith("apply"):
        deltapack.apply(tmp_path / "base", packs[0], out)
    else:
        deltapack.merge(tmp_path / "base", packs, out, weights=[0.5, 0.5], prefer=packs[0])
    monkeypatch.undo()
    journal.check(out)
    assert not leftovers(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 5000])
@pytest.mark.parametrize("length", [100, 1 << 18, (1 << 18) + 4095, (1 << 18) + 8191, (1 << 20) + 1])
def test_writeback_starts_for_whole_blocks_of_what_was_written(
    offset: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(files, "_sync_file_range", lambda: lambda *arguments: asked.append(arguments))
    with contextlib.closing(WriteFile(tmp_path / "out", offset + length)) as file:
        file.write(offset, memoryview(bytes(length)))
    first, last = -(-offset // 4096), (offset + length) // 4096
    if (last - first) * 4096 < 1 << 18:
        assert asked == []
    else:
        assert [arguments[1:] for arguments in asked] == [(first * 4096, (last - first) * 4096, 2)] and asked[0][0] >= 0


def test_a_copy_starts_writeback_and_a_failed_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "copy_file_range"):
        pytest.skip("the system cannot copy ranges")
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "_sync_file_range", lambda: lambda handle, start, length, flag: asked.append((start, length)))
    (tmp_path / "source").write_bytes(bytes(1 << 19))
    source, out = open_local(tmp_path / "source"), WriteFile(tmp_path / "out", 1 << 19)
    with contextlib.closing(source), contextlib.closing(out):
        copied = out.copy(source, 0, 100, (1 << 19) - 100)
        assert asked == ([(4096, (1 << 19) - 4096)] if copied else [])
        asked.clear()
        assert not out.copy(source, 1 << 18, 0, 1 << 19) and asked == []
