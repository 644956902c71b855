"""What holds whatever the target: bounded memory and time, nothing touched outside of the scratch folder, no descriptors left open."""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltapack.patterns import _PROGRAM
from fuzz.environment import CACHE
from fuzz.protocol import Finding

__all__ = ["bound_memory", "watched"]

_SPACE, _GROWTH = 6 << 30, 1 << 30
_CPU_SECONDS, _WALL_SECONDS, _HARD_SECONDS = 30.0, 300.0, 900.0
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.rmtree",
)
_FOREIGN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.bind")


class TimeOut(BaseException):
    """An input takes too long; no `except Exception` stops it."""


class _Watch:
    """Where the process may write while an input runs; an audit hook cannot be removed, so there is one, and it can be turned off."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.faults: list[str] = []

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, mode, flags = args
            writes = any(letter in mode for letter in "wxa+") if isinstance(mode, str) else bool(isinstance(flags, int) and flags & _WRITES)
            if writes:
                self._check(event, path)
        elif event in _CHANGING:
            for path, folder in _places(event, args):
                self._check(event, path, folder)
        elif event in _FOREIGN and not _tries_a_pattern(event, args):
            self.faults.append(f"{event} {str(args)[:200]}")

    def _check(self, event: str, path: Any, folder: Any = None) -> None:
        if isinstance(path, int) or path is None or self.allowed is None:
            return
        within = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
        where = os.path.abspath(os.path.join(within, os.fsdecode(path)))
        # Compiled code is kept beside its source, or in a folder for caches.
        if not where.startswith(self.allowed) and "__pycache__" not in where.split(os.sep):
            self.faults.append(f"{event} {where}")


def _places(event: str, args: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """The paths that an event changes, each with the descriptor of the folder that it is relative to."""
    if event in ("os.rename", "os.link"):
        yield args[0], args[2]
        yield args[1], args[3]
    elif event == "os.symlink":
        yield args[1], args[2]
    else:
        at = {"os.mkdir": 2, "os.chmod": 2, "os.chown": 3}.get(event, 1)
        yield args[0], args[at] if len(args) > at and event != "os.truncate" else None


def _tries_a_pattern(event: str, args: tuple[Any, ...]) -> bool:
    """Whether a child is started in which deltapack tries expressions of users, so that none of them hangs the process."""
    return event == "subprocess.Popen" and _PROGRAM in args[1]


_watch = _Watch()
_hooked: list[bool] = []


def bound_memory() -> None:
    """Let this process map no more than some gigabytes beyond what it has; once more for each target, which may be more each time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most, hard = pages * resource.getpagesize() + _SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Run one input.

    Args:
        folder: Where it may write.

    Raises:
        Finding: It wrote elsewhere, started something, took a gigabyte or half a minute, or left a descriptor open.
    """
    if not _hooked:
        sys.addaudithook(_watch.hear)
        _hooked.append(True)
    _watch.faults.clear()
    before, most = _descriptors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    caches = [os.environ[name] for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR") if name in os.environ] + [str(CACHE.parent)]
    with _timed():
        _watch.allowed = (f"{folder}{os.sep}", str(folder), "/dev/null", *caches)
        try:
            yield
        finally:
            _watch.allowed = None
            if _watch.faults:  # whatever came of it
                raise Finding(f"outside of the scratch folder: {_watch.faults[0]}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - most
    if grown > _GROWTH:
        raise Finding(f"memory: {grown >> 20} MiB more than ever before")
    if len(_descriptors()) > len(before) + 1:
        gc.collect()
        left = _descriptors() - before
        if len(left) > 1:  # one is that of the folder that lists them
            raise Finding(f"left open: {len(left) - 1} descriptors")


@contextmanager
def _timed() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TimeOut("half a minute of CPU time" if number == signal.SIGPROF else "five minutes")

    handlers = [(number, signal.signal(number, stop)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _WALL_SECONDS)
    faulthandler.dump_traceback_later(_HARD_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    except TimeOut as error:
        raise Finding(f"time: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in handlers:
            signal.signal(number, handler)
