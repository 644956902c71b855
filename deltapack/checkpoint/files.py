"""Files read and written at positions, by any number of threads at once."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltapack.errors import CheckpointError

__all__ = ["ReadFile", "WriteFile", "bytes_of"]

_MAX_IO = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
_SEEK_LOCK = threading.Lock()  # only used where the platform has no pread


def bytes_of(array: npt.NDArray[np.generic]) -> memoryview:
    """Return the bytes of a 1-D C-contiguous array without a copy."""
    return array.view(np.uint8).data


class ReadFile:
    """A regular file opened for reads at positions; the handle stays on the same file even if it is replaced.

    Args:
        path: The file; symbolic links are followed.

    Raises:
        CheckpointError: There is no such file, it is not a regular file, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise CheckpointError("not a regular file", path=path)
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise CheckpointError("no such file", path=path, hint="Was the download complete?") from error
        except OSError as error:
            raise CheckpointError(f"cannot open: {error.strerror or error}", path=path) from error
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

    def sync(self) -> None:
        """Wait until the file is on the disk."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the handle; closing twice is fine."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # what matters was reported by `sync`
                os.close(self.fd)
            self.fd = -1
