"""A path on another machine: names as of any path, and what is there asked of its source."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath, PurePath, PurePosixPath
from typing import Any, NoReturn

from deltapack.errors import CheckpointError, RecipeError
from deltapack.sources import stores
from deltapack.sources.found import Found
from deltapack.sources.reading import Faults, Readable
from deltapack.sources.urls import Url, parse_url, url_of_parts

__all__ = ["RemotePath", "is_file"]

_MOST_DEEP = 8
_FAULTS = Faults(
    missing=lambda path: CheckpointError("no such file", path=path),
    unfit=lambda path, what: CheckpointError(what, path=path),
    unread=lambda path, what: CheckpointError(what, path=path),
    ended=lambda path, expected, found: CheckpointError("the file ended", path=path, expected=f"{expected} bytes", found=found),
)


class RemotePath(PosixPath):
    """A path that is an address; made by `RemotePath.of`.

    `str` is the address without secrets; the query and the user that it was given with are kept for requests and go on to its children.
    What would read a file of this machine (`open(path)`, `os.stat(path)`) is an error, so that nothing reads another one by mistake.
    """

    __slots__ = ()

    @classmethod
    def of(cls, text: str) -> RemotePath:
        """Return the path of an address.

        Raises:
            RecipeError: It is none that is read.
        """
        url = parse_url(text)
        return cls(url.pure())

    @property
    def url(self) -> Url:
        """The address.

        Raises:
            RecipeError: What was joined to it leads out of its place.
        """
        return url_of_parts(self.parts)

    def __str__(self) -> str:
        scheme, _, rest = "/".join(self.parts).partition("/")
        return f"{scheme.partition(':')[0]}://{rest}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise RecipeError("this needs a local file", path=str(self), hint="Download it first, and name the file that is then here.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __lt__(self, other: PurePath) -> bool:
        return str(self) < str(other)

    def __rtruediv__(self, key: object) -> RemotePath:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath.of, (self.url.full,)

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in; of a host or bucket itself."""
        return self if len(self.parts) <= 2 else super().parent

    def as_posix(self) -> str:
        """Return the address."""
        return str(self)

    def as_uri(self) -> str:
        """Return the address."""
        return str(self)

    def is_absolute(self) -> bool:
        """Return true."""
        return True

    def absolute(self) -> RemotePath:
        """Return the path: it has no links."""
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path: it has no links."""
        return self

    def expanduser(self) -> RemotePath:
        """Return the path."""
        return self

    def samefile(self, other_path: object) -> bool:
        """Whether both are one address."""
        return self == other_path

    def is_relative_to(self, other: object, *more: object) -> bool:
        """Whether it lies in another path."""
        return isinstance(other, RemotePath) and self.parts[: len(other.parts)] == other.parts

    def relative_to(self, other: object, *more: object, walk_up: bool = False) -> PurePosixPath:  # type: ignore[override]
        """Return where it lies in another path.

        Raises:
            ValueError: It does not.
        """
        if isinstance(other, RemotePath) and self.is_relative_to(other):
            return PurePosixPath(*self.parts[len(other.parts) :])
        raise ValueError(f"{self} is not in {other}")

    def _found(self) -> Found | None:
        return stores.find(self.url)

    def exists(self, **_: bool) -> bool:
        """Whether something is there."""
        return self._found() is not None

    def is_file(self, **_: bool) -> bool:
        """Whether it is a file."""
        found = self._found()
        return found is not None and not found.is_folder

    def is_dir(self, **_: bool) -> bool:
        """Whether it is a folder."""
        found = self._found()
        return found is not None and found.is_folder

    def is_symlink(self) -> bool:
        """Return false."""
        return False

    def stat(self, **_: bool) -> os.stat_result:
        """Return kind, size and time of the last change; the number of the file (`st_ino`) changes with its version.

        Raises:
            FileNotFoundError: Nothing is there.
        """
        found = self._found()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        mode = stat.S_IFDIR | 0o555 if found.is_folder else stat.S_IFREG | 0o444
        number = int.from_bytes(hashlib.sha256(found.version.encode()).digest()[:7], "little") if found.version else 0
        when = int(found.modified)
        exact = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), int(found.modified * 1e9))
        return os.stat_result((mode, number, 0, 1, 0, 0, found.size, when, when, when), exact)

    def lstat(self) -> os.stat_result:
        """Return what `stat` does."""
        return self.stat()

    def iterdir(self) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield what is in the folder, by name.

        Raises:
            NotADirectoryError: It is a file.
            FileNotFoundError: Nothing is there.
        """
        if stat.S_ISREG(self.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(self))
        return iter([self / name for name in sorted(stores.names(self.url))])

    def glob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield what is in the folder itself and fits a pattern without `/`."""
        if "/" in pattern or "**" in pattern:
            raise RecipeError("only the folder itself is searched", path=str(self), found=pattern)
        return iter([path for path in (self.iterdir() if self.is_dir() else ()) if fnmatchcase(path.name, pattern)])

    def rglob(self, pattern: str, **_: Any) -> Iterator[RemotePath]:  # type: ignore[override]
        """Yield what is in the folder and those in it, to a depth of 8, and fits a pattern without `/`."""
        return iter(self._below(pattern, _MOST_DEEP))

    def _below(self, pattern: str, depth: int) -> list[RemotePath]:
        found = [*self.glob(pattern)]
        folders = [path for path in self.glob("*") if path.is_dir()] if depth else []
        return found + [path for folder in folders for path in folder._below(pattern, depth - 1)]

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Open the file to be read, in mode `"rb"`.

        Raises:
            CheckpointError: There is none.
            RecipeError: It was to be written, or read as text.
        """
        if mode != "rb":
            self._refuse()
        from deltapack.sources.remote import RemoteFile  # only who reads here pays for importing it

        return io.BufferedReader(_Raw(RemoteFile(self, self.url, _FAULTS)))

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            CheckpointError: There is no such file.
        """
        with self.open("rb") as file:
            data: bytes = file.read()
        return data

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Return the content as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def _refuse(self) -> NoReturn:
        raise RecipeError("only bytes are read there", path=str(self), expected="mode 'rb'")


def is_file(path: Path) -> bool:
    """Whether a path is one of a file, here or elsewhere; a name that no file can have, at which pathlib stops, is none."""
    return path.is_file() if isinstance(path, RemotePath) else os.path.isfile(path)


class _Raw(io.RawIOBase):
    """A file of another machine as one of Python's."""

    def __init__(self, file: Readable) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.size - self._at))
        self._file.read_into(self._at, view[:count])
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
