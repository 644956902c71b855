"""Handles: no reader ever sees another file, whoever closes and opens what meanwhile, and few are open at once."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.local_files import open_local

from deltapack.checkpoint.files import WriteFile
from deltapack.errors import CheckpointError
from deltapack.sources import handles
from deltapack.sources.handles import ClosedHandleError, Handle

SIZE = 1 << 12


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files of one byte each, over and over: whoever reads another one sees it at once."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(24)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * SIZE)
    return paths


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No more than three files of this room are open."""
    gc.collect()
    monkeypatch.setattr(handles, "_OPEN", {})
    monkeypatch.setattr(handles, "_allowed", lambda: 3)
    yield


def test_a_number_stays_that_files_while_it_is_held(files: list[Path]) -> None:
    handle = Handle(files[1], os.O_RDONLY)
    with handle as fd:
        handle.close()
        handle.close()
        assert handle.closed
        others = [os.open(path, os.O_RDONLY) for path in files[2:6]]
        assert fd not in others and os.pread(fd, 4, 0) == b"\1\1\1\1"
        with pytest.raises(ClosedHandleError), handle:
            pass
    new = os.open(files[6], os.O_RDONLY)
    assert new == fd  # let go of when its last user was
    for number in (*others, new):
        os.close(number)


def test_threads_that_read_while_others_close_and_open(files: list[Path]) -> None:
    """A closed number is given to the next file: a reader that came by it then read that file. Here it reads its own, or is told."""
    shared = [open_local(path) for path in files[:8]]
    until, wrong, told, right = time.monotonic() + 1.5, list[object](), list[str](), list[int]()

    def read(seed: int) -> None:
        choice = random.Random(seed)
        while time.monotonic() < until:
            number = choice.randrange(len(shared))
            view = bytearray(64)
            try:
                if choice.random() < 0.5:
                    shared[number].read_into(choice.randrange(SIZE - 64), memoryview(view))
                else:
                    view = bytearray(shared[number].read(choice.randrange(SIZE - 64), 64))
            except CheckpointError as error:
                told.append(error.what)
            else:
                (right if set(view) == {number} else wrong).append(number)

    def close() -> None:
        choice = random.Random(0)
        while time.monotonic() < until:
            number = choice.randrange(len(shared))
            shared[number].close()
            rest = [open_local(path) for path in files[8:]]  # one of them gets the number
            shared[number] = open_local(files[number])
            for file in rest:
                file.close()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)] + [threading.Thread(target=close)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(right) > 100
    assert set(told) <= {"the file is closed"}


@pytest.mark.usefixtures("few")
def test_few_are_open_at_once(files: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    held = [open_local(path) for path in files]
    for number, file in [*enumerate(held), *enumerate(held)]:
        assert file.read(SIZE - 3, 3) == bytes([number]) * 3
        assert len(handles._OPEN) <= 3
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) <= before + 3
    for file in held:
        file.close()
    assert handles._OPEN == {}
    for file in held:
        with pytest.raises(CheckpointError, match="the file is closed"):
            file.read(0, 1)


@pytest.mark.usefixtures("few")
def test_what_is_held_is_not_closed(files: list[Path]) -> None:
    first = Handle(files[0], os.O_RDONLY)
    with first as fd:
        others = [open_local(path) for path in files[1:]]
        for number, file in enumerate(others, 1):
            assert file.read(0, 1)[0] == number
        assert os.pread(fd, 1, 0) == b"\0"
    assert others


@pytest.mark.usefixtures("few")
def test_a_file_that_was_replaced_is_never_read_for_the_one_that_was_opened(files: list[Path], tmp_path: Path) -> None:
    first = open_local(files[0])
    others = [open_local(path) for path in files[1:8]]
    (tmp_path / "new").write_bytes(b"n" * SIZE)
    os.replace(tmp_path / "new", files[0])
    with pytest.raises(CheckpointError, match="another file has its name by now") as told:
        first.read(0, 1)
    assert told.value.path == files[0]
    files[1].unlink()
    with pytest.raises(CheckpointError, match="cannot read: No such file"):
        others[0].read(0, 1)


@pytest.mark.usefixtures("few")
def test_files_that_are_written(tmp_path: Path) -> None:
    """More outputs than may be open: opened again they are neither made anew nor cut."""
    written = [WriteFile(tmp_path / f"{number}.out", 64) for number in range(12)]
    for at in range(0, 64, 16):
        for number, file in enumerate(written):
            file.write(at, memoryview(bytes([number + at] * 16)))
    for file in written:
        file.sync()
        file.close()
    for number in range(12):
        expected = b"".join(bytes([number + at] * 16) for at in range(0, 64, 16))
        assert (tmp_path / f"{number}.out").read_bytes() == expected


def test_an_output_that_is_closed(tmp_path: Path) -> None:
    """A thread that is late writes into no other file."""
    file = WriteFile(tmp_path / "a.out", 16)
    file.close()
    other = WriteFile(tmp_path / "b.out", 16)
    with pytest.raises(OSError, match="the output is closed") as told:
        file.write(0, memoryview(b"late"))
    assert told.value.errno == errno.EBADF
    with pytest.raises(OSError, match="the output is closed"):
        file.sync()
    other.close()
    assert (tmp_path / "b.out").read_bytes() == bytes(16)


def test_others_have_opened_all_that_the_system_allows(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    idle = [open_local(path) for path in files[:4]]
    real, refused = os.open, list[object]()

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if handles._OPEN:
            refused.append(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, mode)

    gc.collect()
    monkeypatch.setattr(handles, "_OPEN", dict(handles._OPEN))
    monkeypatch.setattr(os, "open", refuse)
    assert open_local(files[5]).read(0, 1) == b"\5" and refused
    assert idle[0].read(0, 1) == b"\0"
    monkeypatch.setattr(os, "open", real)


def test_how_many_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    resource: Any = pytest.importorskip("resource")
    for soft, expected in ((1024, 512), (64, 32), (4, 8), (1 << 20, 1 << 15), (resource.RLIM_INFINITY, 1 << 15)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, soft=soft: (soft, soft))
        assert handles._allowed() == expected


def test_what_its_owner_forgot_is_closed(files: list[Path]) -> None:
    handle = Handle(files[0], os.O_RDONLY)
    with handle as fd:
        pass
    key = id(handle)
    del handle
    gc.collect()
    assert key not in handles._OPEN
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
