"""What the system asks of a mounted shelf, answered from virtual folders; it needs no FUSE to be called."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deltapack.errors import DeltapackError
from deltapack.virtual.shelf import Shelf, Title

__all__ = ["ShelfOperations"]

_BLOCK = 4096


class ShelfOperations:
    """Operations by the names that mfusepy calls them. All raise `OSError` with the number that the system shows.

    Args:
        shelf: What is mounted.
        log: Told why something cannot be read: the system shows a number alone.
    """

    use_ns = True

    def __init__(self, shelf: Shelf, log: Callable[[str], None]) -> None:
        self._shelf, self._log = shelf, log

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return size, kind and time of a path."""
        with self._errors(path):
            title, inside = self._split(path)
            if title is None:
                return _folder_status(0)
            changed = max(moment for _, _, moment in title.stamps)
            if not inside:
                return _folder_status(changed)
            with self._shelf.use(title.name) as folder:
                size = folder.names().get(inside)
                if size is not None:
                    return _status(stat.S_IFREG | 0o444, size, changed)
                if any(name.startswith(f"{inside}/") for name in folder.names()):
                    return _folder_status(changed)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def readdir(self, path: str, fh: int) -> list[str]:
        """Return the names in a folder."""
        with self._errors(path):
            title, inside = self._split(path)
            if title is None:
                return [".", "..", *self._shelf.titles()]
            prefix = f"{inside}/" if inside else ""
            with self._shelf.use(title.name) as folder:
                names = [name.removeprefix(prefix).partition("/")[0] for name in folder.names() if name.startswith(prefix)]
            return [".", "..", *dict.fromkeys(names)]

    def open(self, path: str, flags: int) -> int:
        """Open a file for reading."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        self.getattr(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Return bytes of a file."""
        with self._errors(path):
            title, inside = self._split(path)
            if title is None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            with self._shelf.use(title.name) as folder:
                if inside not in folder.names():
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                return folder.read(inside, offset, size)

    def statfs(self, path: str) -> dict[str, int]:
        """Say that there is no room."""
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": 0, "f_bfree": 0, "f_bavail": 0, "f_namemax": 255}

    def _split(self, path: str) -> tuple[Title | None, str]:
        """Return the checkpoint that a path is in, and what is left of it; none for the top."""
        name, _, inside = path.strip("/").partition("/")
        if not name:
            return None, ""
        title = self._shelf.titles().get(name)
        if title is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return title, inside

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except DeltapackError as error:
            self._log(f"{path}: {error}")
            raise OSError(errno.EIO, os.strerror(errno.EIO), path) from error


def _folder_status(changed: int) -> dict[str, Any]:
    return _status(stat.S_IFDIR | 0o555, 0, changed) | {"st_nlink": 2}


def _status(mode: int, size: int, changed: int) -> dict[str, Any]:
    owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
    times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), changed)
    return {"st_mode": mode, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // 512), **owner, **times}
