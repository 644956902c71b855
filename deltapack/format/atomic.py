"""Crash-safe files: the final name holds the old file or the complete new one, never anything between."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deltapack.errors import OutputError
from deltapack.format.placing import place, seen_at
from deltapack.sources.inputs import refuse_input

__all__ = [
    "atomic_file",
    "check_absent",
    "check_free_space",
    "check_new_file",
    "fsync_folder",
    "temporary_sibling",
    "writing",
]


def temporary_sibling(path: Path) -> Path:
    """Return a fresh hidden name beside `path`, on the same file system, for the unfinished output."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the platform can open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_free_space(folder: Path, needed: int, path: Path) -> None:
    """Refuse early when the disk of `folder` cannot hold `needed` bytes.

    Raises:
        OutputError: Fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            "not enough free disk space",
            path=path,
            expected=f"{needed:,} bytes",
            found=f"{free:,} bytes free",
            hint="Free some space or choose another output.",
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, no permission) into `OutputError` for `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "The disk is full; nothing was changed under the final name." if full else "Choose another output."
        raise OutputError(f"cannot write: {error.strerror or error}", path=path, hint=hint) from error


def check_absent(path: Path) -> None:
    """Refuse an output that nothing may be in the place of: it is not replaced, by no option.

    Raises:
        OutputError: `path` exists, if only as a link to nothing.
    """
    if os.path.lexists(path):
        raise OutputError("the output exists", path=path, hint="Remove it or choose another name.")


def check_new_file(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be created, or that `force` must not replace.

    Raises:
        OutputError: `path` is a folder or an input, or exists and `force` is false, or its folder is missing.
    """
    refuse_input(path)
    if path.is_dir():
        raise OutputError("the output is a folder, a file is written here", path=path, hint="Name a file.")
    if os.path.lexists(path) and not force:
        raise OutputError("the output exists", path=path, hint="Remove it, choose another name, or use --force.")
    if not path.parent.is_dir():
        raise OutputError("the folder of the output does not exist", path=path.parent, hint="Create it first.")


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an exception.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is untouched. What comes there meanwhile stays, also with
    `force`, which replaces what was there when the block began.

    Raises:
        InputChangedError: What was read for it changed meanwhile.
        OutputError: `path` exists and `force` is false, its folder is missing, or the system refuses to write.
    """
    with writing(path):
        check_new_file(path, force=force)
        before, temporary = seen_at(path), temporary_sibling(path)
        try:  # before it is there: an interrupt may come between two lines
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                if path.exists():
                    os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
                os.fsync(file.fileno())
            place(temporary, path, before)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        fsync_folder(path.parent)
