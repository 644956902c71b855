"""Small files read whole, whatever a path turns out to be."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from deltapack.sources.inputs import note_input
from deltapack.sources.remote_path import RemotePath

__all__ = ["read_small"]


def read_small(path: Path, most: int, *, is_input: bool = True) -> bytes:
    """Return the content of a file; a pipe is not waited for, a device not read, and no more memory taken than `most` bytes.

    Args:
        path: The file.
        most: Bytes that it may have.
        is_input: Whether an output may be made of it, for which it has to stay as it is; what this program itself writes may change.

    Raises:
        InputChangedError: The call in hand has read it before, and it is another by now.
        OSError: It cannot be read, is no regular file (EINVAL), or is longer (EFBIG).
    """
    if isinstance(path, RemotePath):
        if path.stat().st_size > most:
            raise _error(errno.EFBIG, path)
        return path.read_bytes()
    if is_input:
        note_input(path)
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    if not stat.S_ISREG(path.stat().st_mode):  # opening some devices does something
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise _error(errno.EFBIG, path)
    return data


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))
