"""A finished output gets its name: nothing that came meanwhile is replaced, and with force only what was there at the start."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import sys
from pathlib import Path

from deltapack.errors import OutputError
from deltapack.sources.identity import Identity
from deltapack.sources.inputs import check_inputs, forget_output, refuse_input
from deltapack.sources.remote_path import RemotePath

__all__ = ["check_as_seen", "move_new", "place", "seen_at", "swapped"]

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2


def seen_at(path: Path) -> Identity | None:
    """Return what is at the place of an output, links not followed; none where nothing is, and in a store. For `place`, later.

    Raises:
        OutputError: The system does not say.
    """
    if isinstance(path, RemotePath):
        return None
    try:
        return Identity.of(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"what is at the place of the output cannot be seen: {error.strerror or error}", path=path) from error


def place(temporary: Path, path: Path, before: Identity | None) -> None:
    """Give a finished file or folder its final name, in one step, after the inputs were seen again.

    Where the system can exchange names (Linux), what was there is looked at once more after it was swapped out, and put back if it is
    something else; elsewhere it is looked at just before.

    Args:
        temporary: What was written, beside `path`; it is gone afterwards. What was replaced, if a folder, is under this name then.
        path: The final name.
        before: What was there when the output was begun, and is to be replaced; none where nothing was.

    Raises:
        InputChangedError: An input is another by now.
        OSError: The system refuses.
        OutputError: Something is there that was not, or is another by now; or it is an input.
    """
    check_inputs()
    refuse_input(path)
    if before is None:
        move_new(temporary, path)
    else:
        _replace(temporary, path, before)
    forget_output(path)


def check_as_seen(path: Path, before: Identity | None) -> None:
    """Refuse to go on where something else is at a place than there was.

    Raises:
        OutputError: It is.
    """
    if os.path.lexists(path) if before is None else _is_other(path, before):
        raise _came(path)


def move_new(temporary: Path, path: Path) -> None:
    """Give a file or folder a name that nothing has.

    Raises:
        OSError: The system refuses.
        OutputError: Something has it, if only since a moment ago.
    """
    try:
        if _renameat2(temporary, path, _NOREPLACE):
            return
        if not os.path.isdir(temporary):
            with contextlib.suppress(AttributeError):  # no hard links here
                os.link(temporary, path)  # unlike a rename, never in the place of another file
                os.unlink(temporary)
                return
    except FileExistsError as error:
        raise _came(path) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
    if os.path.lexists(path):  # a look just before has to do
        raise _came(path)
    os.rename(temporary, path)


def swapped(one: Path, other: Path) -> bool:
    """Exchange two names in one step; false where the system cannot.

    Raises:
        OSError: It refuses, as one of them is not there.
    """
    return _renameat2(one, other, _EXCHANGE)


def _replace(temporary: Path, path: Path, before: Identity) -> None:
    """Take the place of what was there at the start, and of nothing else."""
    if not os.path.lexists(path):  # it is gone meanwhile
        move_new(temporary, path)
    elif not swapped(temporary, path):
        check_as_seen(path, before)
        _replace_in_steps(temporary, path)
    elif _is_other(temporary, before):
        swapped(temporary, path)
        raise _came(path)
    elif not os.path.isdir(temporary) or os.path.islink(temporary):
        os.unlink(temporary)


def _replace_in_steps(temporary: Path, path: Path) -> None:
    """Replace a file; put a folder in the place of another, which is under the name `temporary` afterwards."""
    if not os.path.isdir(temporary):
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, temporary)


def _is_other(path: Path, before: Identity) -> bool:
    """Whether this is not what was there; a new name alone changes the ctime."""
    try:
        now = seen_at(path)
    except OutputError:
        return True
    return now is None or now.key != before.key or now.changes(before, sealed=True) is not None


def _came(path: Path) -> OutputError:
    hint = "It came or changed meanwhile, and was not replaced. Remove it or choose another name."
    return OutputError("the output exists", path=path, hint=hint)


def _renameat2(one: Path, other: Path, flags: int) -> bool:
    """Rename as Linux alone can; false where the system or the file system cannot.

    Raises:
        OSError: It refuses.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
