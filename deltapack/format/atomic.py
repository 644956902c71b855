"""Crash-safe outputs: the final name holds the old file or the complete new one, never anything between.

One run writes an output at a time, by a lock beside it; what killed runs have left of it is found by its name, and removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deltapack.errors import OutputError
from deltapack.format.placing import place, seen_at
from deltapack.sources.inputs import refuse_input
from deltapack.sources.locks import Lock, tell
from deltapack.sources.owners import Owner
from deltapack.sources.remote_path import RemotePath

__all__ = [
    "Claim",
    "atomic_file",
    "check_absent",
    "check_free_space",
    "check_new_file",
    "claimed",
    "fsync_folder",
    "fsync_tree",
    "place_durably",
    "raise_error",
    "sweep",
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


class Claim:
    """The right to write an output.

    Attributes:
        out: The output.
        before: Who had it and was killed, as far as the lock tells.
    """

    def __init__(self, out: Path, before: Owner | None) -> None:
        self.out, self.before = out, before

    def unfinished(self) -> list[Path]:
        """Return what killed runs have left: whoever has the claim is the only one that makes such files, and has made none yet."""
        name = re.compile(rf"\.{re.escape(self.out.name)}\.[0-9a-f]{{8}}\.partial")
        return sorted(self.out.with_name(found) for found in os.listdir(self.out.parent) if name.fullmatch(found))

    def sweep(self, keep: Path | None = None) -> None:
        """Remove what killed runs have left, but for what is kept, and say so."""
        gone = [path.name for path in self.unfinished() if path != keep and _removed(path)]
        if gone:
            who = "a killed run" if self.before is None else f"a killed run ({self.before})"
            tell(f"removed what {who} had left of {self.out}: {', '.join(gone)}")


@contextlib.contextmanager
def claimed(out: Path, *, sweep: bool = True) -> Iterator[Claim]:
    """Claim an output for as long as the block runs.

    Args:
        out: The output, in a folder that is there.
        sweep: Whether to remove what killed runs have left of it.

    Raises:
        OutputError: Another run writes it, or the system refuses.
    """
    lock = Lock(_lock_of(out))
    try:
        with writing(out):
            held = lock.take()
        if not held:
            hint = "Wait for it, or choose another output."
            hint += (
                ""
                if lock.is_sure
                else f" If nothing writes there, remove {lock.path}: this file system has no locks that end by themselves."
            )
            raise OutputError("another run writes this output", path=out, found=lock.owner, hint=hint)
        claim = Claim(out, lock.owner)
        if sweep:
            with writing(out):
                claim.sweep()
        yield claim
    finally:
        lock.let_go()


def sweep(out: Path) -> None:
    """Remove what killed runs have left of an output that stays as it is, where no run writes it."""
    with contextlib.suppress(OSError, OutputError):
        if not isinstance(out, RemotePath) and os.path.lexists(_lock_of(out)):
            with claimed(out):
                pass


def _lock_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.deltapack.lock")


def _removed(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return not os.path.lexists(path)


def check_absent(path: Path) -> None:
    """Refuse an output that nothing may be in the place of: it is not replaced, by no option.

    Raises:
        OutputError: `path` exists, if only as a link to nothing.
    """
    if os.path.lexists(path):
        sweep(path)
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
        sweep(path)
        raise OutputError("the output exists", path=path, hint="Remove it, choose another name, or use --force.")
    if not path.parent.is_dir():
        raise OutputError("the folder of the output does not exist", path=path.parent, hint="Create it first.")


def place_durably(temporary: Path, path: Path) -> None:
    """Give a finished file or folder a new name: all of it is on the disk before, and the name after; raises as `place`.

    Args:
        temporary: What was written, beside `path`, or below a folder there.
        path: The final name, which nothing has.
    """
    if temporary.is_dir():
        fsync_tree(temporary)
    else:
        _fsync(temporary, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    place(temporary, path, None)
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool, claim: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an exception.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is untouched. What comes there meanwhile stays, also with
    `force`, which replaces what was there when the block began.

    Args:
        path: The file.
        force: Whether to replace it.
        claim: Whether to claim it: not where the caller has.

    Raises:
        InputChangedError: What was read for it changed meanwhile.
        OutputError: `path` exists and `force` is false, its folder is missing, another run writes it, or the system refuses to write.
    """
    with contextlib.ExitStack() as stack, writing(path):
        check_new_file(path, force=force)
        if claim:
            stack.enter_context(claimed(path))
        before, temporary = seen_at(path) if force else None, temporary_sibling(path)
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
