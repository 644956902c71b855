"""Locks that end with their process, however it ends, and temporary folders that are removed when whoever made them was killed.

The lock is the system's own on an open file, which the kernel lets go at the death of the process, and a server of NFS when its client is
gone: unlike the number of a process, it is never that of another. Where a file system has no locks, the lock file says whose it is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltapack.sources.owners import Owner, owner_here, owner_in

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["Lock", "scratch", "sweep_scratch", "tell"]

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_HELD = frozenset((errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK))
_TRIES, _LOOKS = 100, 20
_LOCK = ".deltapack.lock"


class Lock:
    """A lock file, which is there as long as the lock is held.

    Args:
        path: The file, which is made where it is not there.

    Attributes:
        owner: Who has it, or had it and was killed; none where nobody has, or the file does not say.
        is_sure: Whether the system says that somebody has it; else the file alone does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner: Owner | None = None
        self.is_sure = False
        self._fd, self._held = -1, False

    def take(self) -> bool:
        """Take the lock; false where another process, or another caller in this one, holds it.

        Raises:
            OSError: As the system says.
        """
        for _ in range(_TRIES):
            made = self._open()
            if self._fd < 0:
                continue
            got = _try_lock(self._fd)
            self.owner, self.is_sure = None if made else self._said(wait=got is False), got is False
            if got is None and not made and self.owner is not None and self.owner.is_gone():
                os.unlink(self.path)  # then whoever makes it anew has it, and nobody else
            elif got is False or (got is None and not made):
                self._close()
                return False
            elif self._is_there():  # else it was let go, and removed, since it was opened
                self._held = True
                os.ftruncate(self._fd, 0)
                os.lseek(self._fd, 0, os.SEEK_SET)
                os.write(self._fd, owner_here().to_bytes())
                return True
            self._close()
        raise OSError(errno.EAGAIN, "the lock is taken and let go all the time", str(self.path))

    def let_go(self) -> None:
        """Let the lock go, and remove its file; children that were forked and have it open do not keep it."""
        try:
            self._let_go()
        except BaseException:  # an interrupt in the middle
            self._let_go()
            raise

    def _let_go(self) -> None:
        if self._fd < 0:
            return
        if not self._held and not _try_lock(self._fd):  # interrupted before it had the lock
            self._close()
            return
        if sys.platform == "win32":  # an open file cannot be removed there
            self._close()
            with suppress(OSError):
                os.unlink(self.path)
            return
        if self._is_there():
            with suppress(OSError):
                os.unlink(self.path)
        self._close()

    def _open(self) -> bool:
        """Open the file, if it is not gone again; return whether it was made."""
        try:
            self._fd = os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            return True
        except FileExistsError:
            with suppress(FileNotFoundError):
                self._fd = os.open(self.path, _FLAGS, 0o666)
        except BaseException:  # an interrupt right after it was made
            _drop_free(self.path)
            raise
        if self._fd >= 0 and not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self._close()
            raise OSError(errno.EINVAL, "what has the name of the lock is no file", str(self.path))
        return False

    def _said(self, *, wait: bool) -> Owner | None:
        """Return whom the file names; whoever has taken the lock a moment ago is about to say so."""
        for _ in range(_LOOKS if wait else 1):
            owner = owner_in(self._fd)
            if owner is not None:
                return owner
            time.sleep(0.01 if wait else 0)
        return None

    def _is_there(self) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        return False

    def _close(self) -> None:
        fd, self._fd, self._held = self._fd, -1, False
        with suppress(OSError):
            os.close(fd)


def _drop_free(path: Path) -> None:
    """Remove a lock file that nobody holds, if it is there."""
    with suppress(OSError):
        fd = os.open(path, _FLAGS, 0o666)
        try:
            if _try_lock(fd):
                os.unlink(path)
        finally:
            os.close(fd)


def _try_lock(fd: int) -> bool | None:
    """Lock an open file until it is closed; false where another has it, none where the file system has no locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


@contextmanager
def scratch(prefix: str = "deltapack-", folder: Path | None = None) -> Iterator[Path]:
    """Return a fresh folder that is removed when the block ends; those of the same kind whose makers were killed are removed first.

    Args:
        prefix: How its name begins: what is for one purpose begins alike.
        folder: Where it lies; in `TMPDIR` unless given.

    Raises:
        OSError: As the system says.
    """
    where = Path(tempfile.gettempdir()) if folder is None else folder
    sweep_scratch(prefix, where)
    for _ in range(_TRIES):
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        lock, held = Lock(made / _LOCK), False
        try:
            with suppress(FileNotFoundError):  # it was swept since a moment ago
                held = lock.take()
            if held:
                yield made
                return
        finally:
            _drop(made, lock)
    raise OSError(errno.EAGAIN, "temporary folders are removed as soon as they are made", str(where))


def sweep_scratch(prefix: str, where: Path) -> None:
    """Remove what killed processes have left of what `scratch` makes."""
    gone = _swept(where, prefix)
    if gone:
        tell(f"removed what killed processes had left in {where}: {', '.join(gone)}")


def _drop(folder: Path, lock: Lock) -> None:
    """Remove a folder; its lock goes last, so that of a removal that is cut short nothing is left that has none."""
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK:
                with suppress(OSError):
                    os.unlink(entry.path)
    lock.let_go()
    with suppress(OSError):
        os.rmdir(folder)


def _swept(where: Path, prefix: str) -> list[str]:
    """Remove folders of processes that were killed, of this user; return their names."""
    ours, gone = re.compile(re.escape(prefix) + "[a-z0-9_]{8}"), list[str]()
    with suppress(OSError), os.scandir(where) as found:
        for entry in found:
            named = ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            if named and _is_made(entry.stat(follow_symlinks=False)) and _removed(Path(entry.path)):
                gone.append(entry.name)
    return sorted(gone)


def _removed(folder: Path) -> bool:
    lock = Lock(folder / _LOCK)
    with suppress(OSError):
        if not lock.path.exists():  # not ours; or its maker was killed before the lock was there, or after
            os.rmdir(folder)
        elif lock.take():
            _drop(folder, lock)
    return not folder.exists()


def _is_made(status: os.stat_result) -> bool:
    """Whether this user made the folder, and for nobody else, as `mkdtemp` does."""
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o700)


def tell(what: str) -> None:
    """Say what a person should know of, by the log `deltapack`: to stderr, unless a program has set up logging."""
    import logging  # rarely needed

    logging.getLogger("deltapack").warning(what)
