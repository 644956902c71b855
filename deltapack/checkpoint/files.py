"""Files of checkpoints read, and new ones written, at positions, by any number of threads at once."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from deltapack.errors import CheckpointError, NotACheckpointError
from deltapack.sources.handles import ClosedHandleError, Handle
from deltapack.sources.local import SEEK_LOCK, LocalFile
from deltapack.sources.opening import open_file
from deltapack.sources.reading import Faults, Readable

__all__ = ["WriteFile", "bytes_of", "is_folder", "open_to_read", "open_whole", "refuse_fault"]

_MAX_IO = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
_BLOCK = 4096
_BUFFER = 1 << 20
_LONG = 1 << 18
_SYNC_FILE_RANGE_WRITE = 2
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def bytes_of(array: npt.NDArray[np.generic]) -> memoryview:
    """Return the bytes of a 1-D C-contiguous array without a copy."""
    return array.view(np.uint8).data


_FAULTS = Faults(
    missing=lambda path: CheckpointError("no such file", path=path, hint="Was the download complete?"),
    unfit=lambda path, what: NotACheckpointError(what, path=path),
    unread=lambda path, what: CheckpointError(what, path=path),
    ended=lambda path, expected, found: CheckpointError(
        "the file ended while it was read",
        path=path,
        expected=f"{expected} bytes",
        found=f"{found}",
        hint="It was cut or is being written.",
    ),
)


def open_to_read(path: Path) -> Readable:
    """Open a file of a checkpoint for reads at positions.

    Args:
        path: The file; symbolic links are followed.

    Raises:
        CheckpointError: There is no such file; a `NotACheckpointError` where it is no regular file, or cannot be opened. So do reads where
            it ends before, or cannot be read.
    """
    return open_file(path, _FAULTS)


def refuse_fault(path: Path, error: OSError) -> str:
    """Return what the system said of a file that is not there for this user; what it failed to give is not left behind.

    Raises:
        CheckpointError: It did.
    """
    if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        raise CheckpointError(f"cannot be read: {error.strerror or error}", path=path, hint="Run it again, or look at the disk.") from error
    return error.strerror or str(error)


def is_folder(path: Path) -> bool:
    """Whether this is a folder; what this user may not look at is none.

    Raises:
        CheckpointError: The disk or the system failed.
    """
    try:
        return path.is_dir()
    except OSError as error:
        refuse_fault(path, error)
        return False


def open_whole(file: Readable) -> BinaryIO:
    """Return an open file as one of Python's, at its begin, for a reader that wants all of it; one of another machine is fetched whole.

    Raises:
        CheckpointError: It cannot be read.
    """
    if not isinstance(file, LocalFile):
        return io.BytesIO(file.read(0, file.size))
    return io.BufferedReader(_Whole(file), _BUFFER)


class _Whole(io.RawIOBase):
    """A file as one of Python's, read at positions: it shares no place with others, and dies of no `close` elsewhere."""

    def __init__(self, file: Readable) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.size - self._at))
        self._file.read_into(self._at, view[:count])
        self._at += count
        return count


class WriteFile:
    """A new file of a known size, written at positions.

    Args:
        path: The file; it must not exist.
        size: Its final size in bytes.

    Raises:
        OSError: As the system says; callers turn it into `OutputError`.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.handle = Handle(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, os.O_RDWR | _FLAGS)
        try:
            with self.handle as fd:
                os.ftruncate(fd, size)
        except BaseException:
            self.close()
            raise

    @classmethod
    def existing(cls, path: Path) -> WriteFile:
        """Open a file that another process made, to write parts of it; raises as the class."""
        file = cls.__new__(cls)
        file.path = path
        file.handle = Handle(path, os.O_WRONLY | _FLAGS)
        return file

    def write(self, offset: int, view: memoryview) -> None:
        """Write the bytes of `view` (format B) at `offset`."""
        done = 0
        with self._held() as fd:
            while done < len(view):
                part = view[done : done + _MAX_IO]
                if hasattr(os, "pwrite"):
                    done += os.pwrite(fd, part, offset + done)
                else:
                    with SEEK_LOCK:
                        os.lseek(fd, offset + done, os.SEEK_SET)
                        done += os.write(fd, part)
            _start_writeback(fd, offset, len(view))

    def copy(self, source: LocalFile, start: int, offset: int, length: int) -> bool:
        """Copy bytes of another file inside the system, shared and not copied where the file system can; false where it cannot.

        After false, what lies in the range is undefined.

        Raises:
            InputChangedError: It was written to since it was opened.
        """
        if not hasattr(os, "copy_file_range"):
            return False
        done = 0
        # Blocks can only be shared whole, so what lies before the first whole block goes first.
        head = -start % _BLOCK if (start - offset) % _BLOCK == 0 else 0
        with self._held() as fd:
            try:
                with source.handle as read:
                    while done < length:
                        count = head - done if done < head < length else length - done
                        moved = os.copy_file_range(read, fd, min(count, _MAX_IO), start + done, offset + done)
                        if moved == 0:  # the source was cut
                            return False
                        done += moved
            except (OSError, ClosedHandleError):  # another file system, or one that cannot; what is closed is told of when it is read
                return False
            source.check()
            _start_writeback(fd, offset, length)
        return True

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        with self._held() as fd:
            os.fsync(fd)

    def close(self) -> None:
        """Close the handle, when nobody writes any more; closing twice is fine."""
        with contextlib.suppress(OSError):  # what matters was reported by `sync`
            self.handle.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """Hold the handle.

        Raises:
            OSError: It was closed, or could not be opened again.
        """
        try:
            with self.handle as fd:
                yield fd
        except ClosedHandleError as error:
            raise OSError(errno.EBADF, "the output is closed", str(self.path)) from error


def _start_writeback(fd: int, offset: int, length: int) -> None:
    """Let the system write to the disk while the next bytes are made; `sync` then waits less. Errors are for `sync` to report.

    Only whole blocks of long ranges: a block that is on its way would keep the next small write waiting.
    """
    start, end = -(-offset // _BLOCK) * _BLOCK, (offset + length) // _BLOCK * _BLOCK
    function = _sync_file_range() if end - start >= _LONG else None
    if function is not None:
        function(fd, start, end - start, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Any:
    """Return the system call that starts writing a range of a file to the disk; none but on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        function = ctypes.CDLL(None).sync_file_range
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        return function
    return None
