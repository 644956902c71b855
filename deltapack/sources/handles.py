"""Handles of open files: closed when their last user has let go of them, and never more of them open than the system allows.

A number of a handle that was closed is given to the next file that is opened. A thread that still reads by it reads another file, and
one that writes damages it. So who uses a number holds its handle (`with handle as fd`), and `close` only says that nobody may begin to.

A process may have few files open at once (256 on macOS, 1024 on many Linuxes), and a model has hundreds of shards. Beyond half of what
is allowed, the handles opened first that nobody holds are closed and opened again when they are needed, if the file is still that one.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from deltapack.forks import FORKS, forking_lock
from deltapack.sources.identity import key_of

__all__ = ["ClosedHandleError", "Handle"]

_FEWEST = 8
"""Handles that may be open however few the system allows: what one piece of work needs at once."""
_MOST = 1 << 15
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_LOCK = forking_lock()
"""Guards the fields of all handles and the table of those that are open. Each is held for a moment."""
_OPEN: dict[int, weakref.ref[Handle]] = {}
"""Handles that are open, by their `id`, the one that was opened first in front."""


class ClosedHandleError(Exception):
    """The file was closed; who opened it turns this into an error that names it."""


class Handle:
    """An open file, to be held while its number is used; safe from any number of threads.

    Attributes:
        status: What the system said of it when it was opened.

    Args:
        path: The file.
        flags: As for `os.open`.
        again: Flags with which it is opened once more, where it had to be closed meanwhile; `flags` unless given.

    Raises:
        OSError: As the system says. Holding it may raise so, too: it could not be opened again, or another file has its name.
    """

    def __init__(self, path: Path, flags: int, again: int | None = None) -> None:
        self._path, self._again = path, flags if again is None else again
        self._users, self._closed, self._fork = 0, False, FORKS[0]
        self._fd = -1
        with _LOCK:
            _leave(_allowed() - 1)
        self._fd = _when_there_is_room(lambda: os.open(path, flags, 0o666))
        with _LOCK:
            _OPEN[id(self)] = weakref.ref(self)
        self.status = os.fstat(self._fd)

    def __enter__(self) -> int:
        """Return the number, which stays that file's until it is let go.

        Raises:
            ClosedHandleError: The handle was closed.
            OSError: It could not be opened again.
        """
        with _LOCK:  # these few lines are all that a read usually pays
            fd = self._fd
            if fd >= 0 and not self._closed and self._fork == FORKS[0]:
                self._users += 1
                return fd
        return _when_there_is_room(self._hold)

    def _hold(self) -> int:
        with _LOCK:
            if self._closed:
                raise ClosedHandleError
            if self._fd < 0:
                self._open_again()
            if self._fork != FORKS[0]:  # threads that held it in the process that was forked are not here
                self._users, self._fork = 0, FORKS[0]
            self._users += 1
            return self._fd

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with _LOCK:
            self._users -= 1
            if self._closed and not self._users:
                self._let_go()

    @property
    def closed(self) -> bool:
        """Whether nobody may begin to use it any more."""
        return self._closed

    def close(self) -> None:
        """Close it, as soon as nobody holds it; closing twice is fine.

        Raises:
            OSError: As the system says.
        """
        with _LOCK:
            self._closed = True
            if self._users <= 0 or self._fork != FORKS[0]:
                self._let_go()

    def __del__(self) -> None:
        """Close what its owner forgot. Without the lock, which this thread may hold: nobody else knows of the handle any more."""
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            self._fd = -1
            _OPEN.pop(id(self), None)
            try:
                os.close(fd)
            except OSError:
                return

    def _open_again(self) -> None:
        """Open the file once more; the lock is held."""
        _leave(_allowed() - 1)
        fd = os.open(self._path, self._again)
        found = os.fstat(fd)
        if key_of(found) != key_of(self.status):
            os.close(fd)
            raise OSError(errno.ESTALE, "another file has its name by now, and there are too few handles to keep it open", str(self._path))
        self._fd = fd
        _OPEN[id(self)] = weakref.ref(self)

    def _let_go(self) -> None:
        """Close the number, if there is one; the lock is held."""
        fd, self._fd = self._fd, -1
        _OPEN.pop(id(self), None)
        if fd >= 0:
            os.close(fd)

    def _is_idle(self) -> bool:
        return self._users <= 0 or self._fork != FORKS[0]


def _when_there_is_room(open_: Callable[[], int]) -> int:
    """Open something, when others have let go of what they hold: hundreds of threads may read hundreds of files at one moment.

    Raises:
        OSError: As `open_`; that too many files are open, if they are so for long.
    """
    for pause in (*(0.001 * 2**number for number in range(9)), *[0.5] * 20):
        try:
            return open_()
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
        with _LOCK:
            _leave(0)  # others than this room may have opened more than their half
        try:
            return open_()
        except OSError as error:
            if error.errno not in _TOO_MANY:
                raise
        time.sleep(pause)
    return open_()


def _leave(most: int) -> None:
    """Close handles that nobody holds, until only so many are open; the lock is held."""
    excess = len(_OPEN) - most
    if excess <= 0:
        return
    for handle in [found for ref in list(_OPEN.values()) if (found := ref()) is not None and found._is_idle()][:excess]:
        handle._let_go()


def _allowed() -> int:
    """Return how many handles this room may have open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else min(max(soft // 2, _FEWEST), _MOST)
