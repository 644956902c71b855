"""Files of this machine."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from deltapack.errors import DeltapackError
from deltapack.forks import forking_lock
from deltapack.sources.handles import ClosedHandleError, Handle
from deltapack.sources.identity import Identity
from deltapack.sources.inputs import changed_here, note_file
from deltapack.sources.reading import Faults

__all__ = ["SEEK_LOCK", "LocalFile"]

_MAX_IO = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
SEEK_LOCK = forking_lock()
"""Held where a handle is moved to a place, which only platforms without `pread` need."""


class LocalFile:
    """A regular file opened for reads at positions; the handle stays on the same file even if it is replaced.

    Each read sees that the file is what it was when it was opened: what was written to meanwhile is an error, never a mixture. Closed while
    threads read, it is so when they have read; what they would read later is an error.

    Attributes:
        path: The file.
        handle: Its handle, to be held while its number is used.
        size: Its bytes when it was opened.
        identity: What the system said of it then.

    Args:
        path: The file; symbolic links are followed.
        faults: The errors to raise.

    Raises:
        DeltapackError: As `faults` says: there is no such file, it is no regular file, or cannot be opened.
        InputChangedError: The call in hand has read it before, and it is another by now.
    """

    def __init__(self, path: Path, faults: Faults) -> None:
        self.path, self._faults = path, faults
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise faults.unfit(path, "not a regular file")
            # Without O_NONBLOCK a pipe that takes the file's place in between would hang here; files do not know the difference.
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
            self.handle = Handle(path, flags)
        except (FileNotFoundError, UnicodeError) as error:  # or the system can have no such name
            raise faults.missing(path) from error
        except OSError as error:
            raise faults.unfit(path, f"cannot open: {error.strerror or error}") from error
        self.identity = Identity.of(self.handle.status)
        self.size = self.identity.stamp[1]
        try:
            note_file(path, self.identity, sealed=faults.sealed)
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """See that the file is what it was when it was opened.

        Raises:
            InputChangedError: Somebody has written to it.
        """
        try:
            with self.handle as fd:
                now = Identity.of(os.fstat(fd))
        except (OSError, ClosedHandleError) as error:
            raise self._unread(error) from error
        told = self.identity.changes(now, sealed=self._faults.sealed)
        if told is not None:
            raise changed_here(self.path, told)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raises as `read_into`."""
        if not hasattr(os, "pread"):
            buffer = bytearray(length)
            self.read_into(offset, memoryview(buffer))
            return bytes(buffer)
        parts, done = [], 0
        while done < length:
            try:
                with self.handle as fd:
                    part = os.pread(fd, min(length - done, _MAX_IO), offset + done)
            except (OSError, ClosedHandleError) as error:
                raise self._unread(error) from error
            if not part:
                raise self._faults.ended(self.path, offset + length, offset + done)
            parts.append(part)
            done += len(part)
        self.check()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (format B) with the bytes from `offset`.

        Raises:
            DeltapackError: As `faults` says: the file ends before, or the system cannot read it.
            InputChangedError: It was written to since it was opened.
        """
        done = 0
        while done < len(view):
            part = view[done : done + _MAX_IO]
            try:
                with self.handle as fd:
                    count = _read_some(fd, offset + done, part)
            except (OSError, ClosedHandleError) as error:
                raise self._unread(error) from error
            if count == 0:
                raise self._faults.ended(self.path, offset + len(view), offset + done)
            done += count
        self.check()

    def _unread(self, error: OSError | ClosedHandleError) -> DeltapackError:
        what = f"cannot read: {error.strerror or error}" if isinstance(error, OSError) else "the file is closed"
        return self._faults.unread(self.path, what)

    def close(self) -> None:
        """Close the handle; closing twice is fine."""
        with contextlib.suppress(OSError):  # all that was wanted was read
            self.handle.close()


def _read_some(fd: int, offset: int, view: memoryview) -> int:
    """Fill the begin of a view with bytes from `offset`; return how many."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    if hasattr(os, "pread"):
        data = os.pread(fd, len(view), offset)
    else:
        with SEEK_LOCK:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)
