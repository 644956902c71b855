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

__all__ = [
    "atomic_file",
    "check_absent",
    "check_free_space",
    "check_new_file",
    "fsync_folder",
    "fsync_tree",
    "place_file",
    "place_folder",
    "raise_error",
    "temporary_sibling",
    "writing",
]


def temporary_sibling(path: Path) -> Path:
    """Return a fresh hidden name beside `path`, on the same file system, for the unfinished output."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the platform can open folders."""
    if os.name != "nt":
        _fsync(folder, os.O_RDONLY)


def fsync_tree(folder: Path) -> None:
    """Make all that is in a folder durable: files, and the names of folders. Links are not followed.

    Raises:
        OSError: The system refuses.
    """
    for where, _, files in os.walk(folder, topdown=False, onerror=raise_error):
        for name in files:
            path = os.path.join(where, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                _fsync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        fsync_folder(Path(where))


def raise_error(error: OSError) -> None:
    """Raise what `os.walk` passes over without this."""
    raise error


def _fsync(path: str | Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        with contextlib.suppress(OSError):  # what matters was said by the sync
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
        OutputError: `path` is a folder, or exists and `force` is false, or its folder is missing.
    """
    if path.is_dir():
        raise OutputError("the output is a folder, a file is written here", path=path, hint="Name a file.")
    if os.path.lexists(path) and not force:
        raise OutputError("the output exists", path=path, hint="Remove it, choose another name, or use --force.")
    if not path.parent.is_dir():
        raise OutputError("the folder of the output does not exist", path=path.parent, hint="Create it first.")


def place_file(temporary: Path, path: Path, *, force: bool) -> None:
    """Give a complete file its final name; without `force` nothing is replaced, also what came there a moment ago.

    Raises:
        OSError: The system refuses.
        OutputError: `path` exists, and `force` is false.
    """
    if force:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, never in the place of another file
    except FileExistsError as error:
        raise OutputError("the output exists", path=path, hint="It came meanwhile. Remove it or choose another name.") from error
    except (OSError, AttributeError):  # no hard links here: a look just before has to do
        check_new_file(path, force=False)
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def place_folder(temporary: Path, path: Path) -> None:
    """Give a complete folder its final name, where nothing or an empty folder is; all of it is on the disk before, and the name after.

    Raises:
        OSError: The system refuses.
    """
    fsync_tree(temporary)
    if os.name == "nt" and path.is_dir():
        path.rmdir()
    os.rename(temporary, path)
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an exception.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is untouched.

    Raises:
        OutputError: `path` exists and `force` is false, its folder is missing, or the system refuses to write.
    """
    with writing(path):
        check_new_file(path, force=force)
        temporary = temporary_sibling(path)
        try:  # before it is there: an interrupt may come between two lines
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                if path.exists():
                    os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
                os.fsync(file.fileno())
            place_file(temporary, path, force=force)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        fsync_folder(path.parent)
