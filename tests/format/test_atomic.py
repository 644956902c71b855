"""The old file or the whole new one, whatever the system refuses."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltapack.errors import OutputError
from deltapack.format import placing
from deltapack.format.atomic import atomic_file, check_free_space, temporary_sibling

OLD, NEW = b"old content", b"new content " * 1000


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "out.dpk"
    path.write_bytes(OLD)
    return path


def failing(function: Callable[..., Any], at: int, code: int) -> Callable[..., Any]:
    """A stand-in that fails at its n-th call."""
    calls = iter(range(at + 100))

    def wrapped(*args: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise OSError(code, os.strerror(code))
        return function(*args, **options)

    return wrapped


def write(path: Path, *, force: bool = True) -> None:
    with atomic_file(path, force=force) as file:
        for start in range(0, len(NEW), 1000):
            file.write(NEW[start : start + 1000])
            file.flush()


def test_new_file(tmp_path: Path) -> None:
    write(tmp_path / "a", force=False)
    assert (tmp_path / "a").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["a"]


def test_old_file_is_replaced_only_by_force(old_file: Path) -> None:
    with pytest.raises(OutputError, match="force"):
        write(old_file, force=False)
    assert old_file.read_bytes() == OLD
    write(old_file)
    assert old_file.read_bytes() == NEW


def without(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Take from the system what some do not have: `renameat2`, or hard links, too."""
    if what != "all":
        monkeypatch.setattr(placing, "_renameat2", lambda one, other, flags: False)
    if what == "no links":
        monkeypatch.setattr(os, "link", failing(os.link, 0, errno.EPERM))


@pytest.mark.parametrize("has", ["all", "links", "no links"])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_appears_meanwhile_is_not_replaced(force: bool, has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`force` is for what was there at the start."""
    without(monkeypatch, has)
    with pytest.raises(OutputError, match="the output exists"), atomic_file(tmp_path / "a", force=force) as file:
        file.write(NEW)
        (tmp_path / "a").write_bytes(OLD)
    assert (tmp_path / "a").read_bytes() == OLD and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("has", ["all", "links", "no links"])
def test_a_new_file_gets_its_name(has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, has)
    write(tmp_path / "a", force=False)
    assert (tmp_path / "a").read_bytes() == NEW and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("has", ["all", "links", "no links"])
@pytest.mark.parametrize("how", ["replaced", "written", "gone"])
def test_force_replaces_what_was_there_at_the_start_alone(has: str, how: str, old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, has)
    refused = contextlib.nullcontext() if how == "gone" else pytest.raises(OutputError, match="came or changed meanwhile")
    with refused, atomic_file(old_file, force=True) as file:
        file.write(NEW)
        if how != "written":
            old_file.rename(old_file.with_name("kept"))
        if how != "gone":
            old_file.write_bytes(b"theirs")
    assert old_file.read_bytes() == (NEW if how == "gone" else b"theirs")
    assert sorted(os.listdir(old_file.parent)) == sorted([old_file.name, *(["kept"] if how != "written" else [])])


def test_nothing_appears_before_the_end(old_file: Path) -> None:
    with atomic_file(old_file, force=True) as file:
        file.write(NEW)
        file.flush()
        assert old_file.read_bytes() == OLD
    assert old_file.read_bytes() == NEW


@pytest.mark.parametrize("name", ["open", "fsync", "replace", "renameat2", "chmod", "fdopen"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_failing_call_leaves_the_old_file(old_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    without(monkeypatch, "links" if name == "replace" else "all")
    where, called = (placing, "_renameat2") if name == "renameat2" else (os, name)
    monkeypatch.setattr(where, called, failing(getattr(where, called), 0, code))
    with pytest.raises(OutputError) as caught:
        write(old_file)
    monkeypatch.undo()
    assert old_file.read_bytes() == OLD
    assert os.listdir(old_file.parent) == [old_file.name]
    assert caught.value.path == old_file
    assert ("disk is full" in str(caught.value)) == (code == errno.ENOSPC)


def test_failing_fsync_of_the_folder_leaves_the_new_file(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 1, errno.EIO))
    with pytest.raises(OutputError):
        write(old_file)
    monkeypatch.undo()
    assert old_file.read_bytes() == NEW
    assert os.listdir(old_file.parent) == [old_file.name]


@pytest.mark.parametrize("at", [0, 1, 5, 11])
def test_full_disk_in_the_middle(old_file: Path, at: int) -> None:
    with pytest.raises(OutputError, match="disk is full"), atomic_file(old_file, force=True) as file:
        write_some = failing(file.write, at, errno.ENOSPC)
        for start in range(0, len(NEW), 1000):
            write_some(NEW[start : start + 1000])
    assert old_file.read_bytes() == OLD
    assert os.listdir(old_file.parent) == [old_file.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_at_the_last_flush(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data wait in the buffer, so only the flush after the block sees that the disk is full."""
    real = os.open

    def open_full(path: Path, flags: int, mode: int) -> int:
        if path.suffix != ".partial":  # the lock
            return real(path, flags, mode)
        os.close(real(path, flags, mode))
        return real("/dev/full", os.O_RDWR)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(OutputError, match="disk is full"), atomic_file(old_file, force=True) as file:
        file.write(b"x")
    monkeypatch.undo()
    assert old_file.read_bytes() == OLD
    assert os.listdir(old_file.parent) == [old_file.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_exceptions_pass_and_nothing_is_left(old_file: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_file(old_file, force=True) as file:
        file.write(NEW)
        raise error
    assert old_file.read_bytes() == OLD
    assert os.listdir(old_file.parent) == [old_file.name]


def test_removed_temporary_file_is_an_output_error(old_file: Path) -> None:
    with pytest.raises(OutputError), atomic_file(old_file, force=True):
        for path in old_file.parent.glob(".*.partial"):
            path.unlink()
    assert old_file.read_bytes() == OLD


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_replaced_file_keeps_its_mode(old_file: Path) -> None:
    old_file.chmod(0o640)
    write(old_file)
    assert stat.S_IMODE(old_file.stat().st_mode) == 0o640


def test_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "missing")
    with pytest.raises(OutputError, match="exists"):
        write(tmp_path / "a", force=False)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("name", ["", "missing/a", "file/a", "a" * 300, "a" * 300 + "/b"])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(OutputError):
        write(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


def test_temporary_names_are_hidden_siblings(tmp_path: Path) -> None:
    one, two = temporary_sibling(tmp_path / "a"), temporary_sibling(tmp_path / "a")
    assert one != two
    assert one.parent == tmp_path
    assert one.name.startswith(".a.")


def test_free_space(tmp_path: Path) -> None:
    check_free_space(tmp_path, 0, tmp_path / "a")
    with pytest.raises(OutputError, match="free"):
        check_free_space(tmp_path, 1 << 60, tmp_path / "a")


def test_an_interrupt_right_after_the_file_is_there_leaves_nothing(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def interrupted(path: Any, flags: int, *mode: int) -> int:
        handle = opened(path, flags, *mode)
        if not flags & os.O_CREAT:
            return handle
        os.close(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_file(old_file, force=True):
        raise AssertionError("never begun")
    assert os.listdir(old_file.parent) == [old_file.name]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone can exchange names")
def test_what_the_system_cannot_exchange_is_told_from_what_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"2")
    assert not placing._renameat2(tmp_path / "one", tmp_path / "other", 1 << 30)  # as a file system does that knows no such flag
    with pytest.raises(FileNotFoundError, match="gone") as caught:
        placing.swapped(tmp_path / "one", tmp_path / "gone")
    assert caught.value.filename == str(tmp_path / "gone")
    assert placing.swapped(tmp_path / "one", tmp_path / "other")
    assert ((tmp_path / "one").read_bytes(), (tmp_path / "other").read_bytes()) == (b"2", b"1")


def test_where_the_system_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder takes the place of another in two steps, and where the second fails the old one is back."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert not placing.swapped(new, old)
    monkeypatch.setattr(ctypes, "CDLL", lambda *given, **named: object())
    assert not placing.swapped(new, old)
    rename = os.rename

    def fails(one: Path, other: Path) -> None:
        if one == new:
            raise OSError(errno.EIO, "no")
        rename(one, other)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        patch.setattr(os, "rename", fails)
        placing._replace_in_steps(new, old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"] and (old / "name").read_text() == "old"
    placing._replace_in_steps(new, old)
    assert (old / "name").read_text() == "new" and (new / "name").read_text() == "old"
