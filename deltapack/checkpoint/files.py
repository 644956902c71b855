"""Files read and written at positions, by any number of threads at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltapack.errors import CheckpointError, NotACheckpointError

__all__ = ["ReadFile", "WriteFile", "bytes_of"]

_MAX_IO = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
_SEEK_LOCK = threading.Lock()  # only used where the platform has no pread
_BLOCK = 4096
_LONG = 1 << 18
_SYNC_FILE_RANGE_WRITE = 2


def bytes_of(array: npt.NDArray[np.generic]) -> memoryview:
    """Return the bytes of a 1-D C-contiguous array without a copy."""
    return array.view(np.uint8).data


class ReadFile:
    """A regular file opened for reads at positions; the handle stays on the same file even if it is replaced.

    Args:
        path: The file; symbolic links are followed.

    Raises:
        CheckpointError: There is no such file; a `NotACheckpointError` where it is no regular file, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise NotACheckpointError("not a regular file", path=path)
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise CheckpointError("no such file", path=path, hint="Was the download complete?") from error
        except OSError as error:
            raise NotACheckpointError(f"cannot open: {error.strerror or error}", path=path) from error
        self.size = os.fstat(self.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            CheckpointError: The file ends before, or the system cannot read it.
        """
        buffer = np.empty(length, np.uint8)
        self.read_into(offset, bytes_of(buffer))
        return buffer.tobytes()

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (format B) with the bytes from `offset`.

        Raises:
            CheckpointError: The file ends before, or the system cannot read it.
        """
        done = 0
        while done < len(view):
            part = view[done : done + _MAX_IO]
            try:
                count = self._read_some(offset + done, part)
            except OSError as error:
                raise CheckpointError(f"cannot read: {error.strerror or error}", path=self.path) from error
            if count == 0:
                raise CheckpointError(
                    "the file ended while it was read",
                    path=self.path,
                    expected=f"{offset + len(view)} bytes",
                    found=f"{offset + done}",
                    hint="It was cut or is being written.",
                )
            done += count

    def _read_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.fd, [view], offset)
        if hasattr(os, "pread"):
            data = os.pread(self.fd, len(view), offset)
        else:
            with _SEEK_LOCK:
                os.lseek(self.fd, offset, os.SEEK_SET)
                data = os.read(self.fd, len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the handle; closing twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


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
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self.fd = os.open(path, flags, 0o666)
        try:
            os.ftruncate(self.fd, size)
        except BaseException:
            self.close()
            raise

    @classmethod
    def existing(cls, path: Path) -> WriteFile:
        """Open a file that another process made, to write parts of it; raises as the class."""
        file = cls.__new__(cls)
        file.path = path
        file.fd = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        return file

    def write(self, offset: int, view: memoryview) -> None:
        """Write the bytes of `view` (format B) at `offset`."""
        done = 0
        while done < len(view):
            part = view[done : done + _MAX_IO]
            if hasattr(os, "pwrite"):
                done += os.pwrite(self.fd, part, offset + done)
            else:
                with _SEEK_LOCK:
                    os.lseek(self.fd, offset + done, os.SEEK_SET)
                    done += os.write(self.fd, part)
        self._start_writeback(offset, len(view))

    def copy(self, source: ReadFile, start: int, offset: int, length: int) -> bool:
        """Copy bytes of another file inside the system, shared and not copied where the file system can; false where it cannot.

        After false, what lies in the range is undefined.
        """
        if not hasattr(os, "copy_file_range"):
            return False
        done = 0
        # Blocks can only be shared whole, so what lies before the first whole block goes first.
        head = -start % _BLOCK if (start - offset) % _BLOCK == 0 else 0
        try:
            while done < length:
                count = head - done if done < head < length else length - done
                moved = os.copy_file_range(source.fd, self.fd, min(count, _MAX_IO), start + done, offset + done)
                if moved == 0:  # the source was cut
                    return False
                done += moved
        except OSError:  # another file system, or one that cannot
            return False
        self._start_writeback(offset, length)
        return True

    def _start_writeback(self, offset: int, length: int) -> None:
        """Let the system write to the disk while the next bytes are made; `sync` then waits less. Errors are for `sync` to report.

        Only whole blocks of long ranges: a block that is on its way would keep the next small write waiting.
        """
        start, end = -(-offset // _BLOCK) * _BLOCK, (offset + length) // _BLOCK * _BLOCK
        function = _sync_file_range() if end - start >= _LONG else None
        if function is not None:
            function(self.fd, start, end - start, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the handle; closing twice is fine."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # what matters was reported by `sync`
                os.close(self.fd)
            self.fd = -1


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
