"""Who holds a lock: the process, its machine, and since when, as a lock file says."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltapack.sources.identity import boot_id

__all__ = ["Owner", "owner_here", "owner_in"]

_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        pid: Its number.
        host: Name of its machine.
        boot: What names the time between two starts of that machine; empty where the system has none.
        started: When it began, in the system's own count: another process of the same number began at another time. 0 where nobody tells.
        since: When it took the lock, in seconds since 1970.
    """

    pid: int
    host: str
    boot: str
    started: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, begun {_age(time.time() - self.since)} ago"

    def is_gone(self) -> bool:
        """Whether the process has surely ended; of one of another machine nobody can say, and where processes are not listed."""
        if self.host != socket.gethostname() or os.name != "posix":
            return False
        if self.boot != boot_id():
            return bool(self.boot)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's
            pass
        return self.started != _started(self.pid)

    def to_bytes(self) -> bytes:
        """Return what the lock file says."""
        return (json.dumps({"deltapack": 1, **vars(self)}) + "\n").encode()


def owner_here() -> Owner:
    """Return this process, with a lock that it takes now."""
    return Owner(os.getpid(), socket.gethostname(), boot_id(), _started(os.getpid()), time.time())


def owner_in(fd: int) -> Owner | None:
    """Return who an open lock file says has taken it; none where it does not say."""
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        said = json.loads(os.read(fd, _MAX_BYTES))
        pid, host, boot, started, since = (said[name] for name in ("pid", "host", "boot", "started", "since"))
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    known = isinstance(host, str) and isinstance(boot, str) and type(since) in (int, float) and 0 <= since < 1 << 40
    known = known and all(type(number) is int and 0 <= number < 1 << 62 for number in (pid, started))
    return Owner(pid, "".join(c for c in host[:64] if c.isprintable()), boot, started, since) if known and pid else None


def _age(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} seconds"


def _started(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        # The second field is the program's name in parentheses, which may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return 0
