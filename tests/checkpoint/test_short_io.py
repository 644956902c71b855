"""The system may move fewer bytes than it was asked to: the rest follows, from the right place to the right place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.local_files import open_local

from deltapack.checkpoint import open_checkpoint, open_writer, plan_shards
from deltapack.checkpoint.files import WriteFile
from deltapack.dtypes import BY_NAME
from deltapack.errors import CheckpointError

DATA = np.random.default_rng(7).integers(0, 256, 30_011, np.uint8).tobytes()
PLACES = [(0, 30_011), (1, 30_010), (4096, 8192), (12_345, 6_789), (30_010, 1), (30_011, 0)]
STEPS = (1000, 1, 4095, 4096, 77, 2)
"""How much the system moves at most, call by call."""


class Short:
    """Stands in for calls of the system that move as much as they like, and counts them."""

    def __init__(self, steps: Sequence[int] = STEPS) -> None:
        self.steps, self.calls = steps, 0

    def at_most(self, wanted: int) -> int:
        self.calls += 1
        return min(wanted, self.steps[self.calls % len(self.steps)])

    def were_enough(self, length: int) -> bool:
        """Whether long transfers took several calls, and any took one."""
        return self.calls > 2 if length > 4096 else bool(self.calls) == bool(length)


def patch_reads(patch: pytest.MonkeyPatch, kind: str) -> Short:
    """Let reads be short; `kind` is the call that the platform has."""
    short, preadv, pread, read = Short(), os.preadv, os.pread, os.read
    if kind == "preadv":
        patch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][: short.at_most(len(views[0]))]], offset))
        patch.setattr(os, "pread", lambda fd, count, offset: pread(fd, short.at_most(count), offset))
        return short
    patch.delattr(os, "preadv")
    if kind == "pread":
        patch.setattr(os, "pread", lambda fd, count, offset: pread(fd, short.at_most(count), offset))
        return short
    patch.delattr(os, "pread")
    patch.setattr(os, "read", lambda fd, count: read(fd, short.at_most(count)))
    return short


def patch_writes(patch: pytest.MonkeyPatch, kind: str) -> Short:
    short, pwrite, write = Short(), os.pwrite, os.write
    if kind == "pwrite":
        patch.setattr(os, "pwrite", lambda fd, view, offset: pwrite(fd, view[: short.at_most(len(view))], offset))
        return short
    patch.delattr(os, "pwrite")
    patch.setattr(os, "write", lambda fd, view: write(fd, view[: short.at_most(len(view))]))
    return short


def patch_copies(patch: pytest.MonkeyPatch, steps: Sequence[int] = STEPS, fail_at: int = 0, end_at: int = 0) -> Short:
    """Let copies inside the system be short; the n-th call may fail, or find the end of the source."""
    short, original = Short(steps), os.copy_file_range

    def copy(source: int, target: int, count: int, start: int, offset: int) -> int:
        count = short.at_most(count)
        if short.calls == fail_at:
            raise OSError(22, "Invalid argument")
        return 0 if short.calls == end_at else original(source, target, count, start, offset)

    patch.setattr(os, "copy_file_range", copy)
    return short


needs_copy = pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the system cannot copy ranges")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


@pytest.mark.parametrize("kind", ["preadv", "pread", "read"])
@pytest.mark.parametrize(("offset", "length"), PLACES)
def test_reads(kind: str, offset: int, length: int, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(open_local(source)) as file:
        short = patch_reads(monkeypatch, kind)
        buffer = np.full(length + 2, 0xA5, np.uint8)
        file.read_into(offset, buffer[1:-1].data)
        assert buffer[1:-1].tobytes() == file.read(offset, length) == DATA[offset : offset + length]
        assert buffer[0] == buffer[-1] == 0xA5  # nothing beside it
        assert short.were_enough(length)
        with pytest.raises(CheckpointError, match="ended") as caught:
            file.read(offset, 30_012 - offset)
        assert (caught.value.expected, caught.value.found) == ("30012 bytes", "30011")


@pytest.mark.parametrize("kind", ["pwrite", "write"])
@pytest.mark.parametrize(("offset", "length"), PLACES)
def test_writes(kind: str, offset: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = patch_writes(monkeypatch, kind)
    with contextlib.closing(WriteFile(tmp_path / "out", len(DATA) + 5)) as file:
        file.write(offset, memoryview(DATA)[:length])
    assert short.were_enough(length)
    assert (tmp_path / "out").read_bytes() == bytes(offset) + DATA[:length] + bytes(len(DATA) + 5 - offset - length)


@needs_copy
@pytest.mark.parametrize("shift", [0, 4096, 1, 5000])
@pytest.mark.parametrize(("offset", "length"), PLACES)
def test_copies(shift: int, offset: int, length: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not source and target have the same place in a block, of which the bytes before the first go first."""
    short = patch_copies(monkeypatch)
    with contextlib.closing(open_local(source)) as file, contextlib.closing(WriteFile(tmp_path / "out", 50_000)) as out:
        if not out.copy(file, offset, offset + shift, length):
            pytest.skip("this file system cannot copy ranges")
    assert short.were_enough(length)
    expected = bytes(offset + shift) + DATA[offset : offset + length]
    assert (tmp_path / "out").read_bytes() == expected + bytes(50_000 - len(expected))


@needs_copy
@pytest.mark.parametrize("cut", ["fails", "ends"])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_copy_that_stops_in_the_middle_goes_on_through_memory(
    cut: str, at: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = open_writer(tmp_path / "out.safetensors", plan_shards([("a", BY_NAME["u8"], (100,)), ("b", BY_NAME["u8"], (30_000,))]))
    copies = patch_copies(monkeypatch, fail_at=at * (cut == "fails"), end_at=at * (cut == "ends"))
    reads, writes = patch_reads(monkeypatch, "preadv"), patch_writes(monkeypatch, "pwrite")
    with contextlib.closing(open_local(source)) as file, out as writer:
        writer.copy("a", 0, 100, file, 3)
        writer.copy("b", 0, 20_000, file, 11)
        writer.copy("b", 20_000, 10_000, file, 20_011)
    assert copies.calls >= at and reads.calls and writes.calls
    with open_checkpoint(tmp_path / "out.safetensors") as found:
        assert found.read("a").tobytes() == DATA[3:103]
        assert found.read("b").tobytes() == DATA[11:]


Patch = Callable[[pytest.MonkeyPatch], list[Short]]
SYSTEMS: dict[str, Patch] = {
    "linux": lambda patch: [patch_reads(patch, "preadv"), patch_writes(patch, "pwrite"), *_copies(patch)],
    "without copies": lambda patch: [patch_reads(patch, "pread"), patch_writes(patch, "pwrite"), *_no_copies(patch)],
    "without positions": lambda patch: [patch_reads(patch, "read"), patch_writes(patch, "write"), *_no_copies(patch)],
}


def _copies(patch: pytest.MonkeyPatch) -> list[Short]:
    return [patch_copies(patch)] if hasattr(os, "copy_file_range") else []


def _no_copies(patch: pytest.MonkeyPatch) -> list[Short]:
    patch.delattr(os, "copy_file_range", raising=False)
    return []


@pytest.mark.parametrize("system", SYSTEMS)
def test_checkpoints_are_read_and_written_whole(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, u16 = np.random.default_rng(2), BY_NAME["bf16"]
    tensors: dict[str, Any] = {name: rng.integers(0, 1 << 16, count).astype("<u2") for name, count in (("a", 9001), ("b", 4096), ("c", 3))}
    shards = plan_shards([(name, u16, array.shape) for name, array in tensors.items()], max_shard_size=9000)
    counts = SYSTEMS[system](monkeypatch)
    with open_writer(tmp_path / "out", shards) as writer:
        for name, array in reversed(tensors.items()):
            writer.write(name, 2, array[2:])
            writer.write(name, 0, array[:2])
        writer.write_side_file("config.json", DATA[:9000])
    with open_checkpoint(tmp_path / "out") as found, open_writer(tmp_path / "again", shards) as writer:
        (file,) = found.side_files()
        assert file.read() == DATA[:9000]
        for name, array in tensors.items():
            assert found.read(name, 1, len(array)).tobytes() == array[1:].tobytes()
            writer.write(name, 0, found.read(name))
        writer.write_side_file("config.json", file.read())
    with open_checkpoint(tmp_path / "again") as found:
        assert {name: found.read(name).tobytes() for name in tensors} == {name: array.tobytes() for name, array in tensors.items()}
    assert all(short.calls for short in counts[:2])
