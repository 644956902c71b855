"""Which file a file is, and whether it is as it was: the one place that compares what the system says of files."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Identity", "Sent", "Stamp", "boot_id", "key_of", "machine", "stamp_of"]

Stamp = tuple[int, int, int]
"""Number, bytes and time of the last change of a file, in nanoseconds: what changes when it is replaced or written anew."""


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what changes when a file is replaced or written anew."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def key_of(status: os.stat_result) -> tuple[int, int]:
    """Return what two names of one file have in common: hard links, symbolic links, other spellings, other mounts of its folder."""
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class Identity:
    """What the system says of a file at one moment.

    Attributes:
        key: Which file it is on this machine, as `key_of`.
        stamp: As `stamp_of`.
        changed_ns: When the system last changed anything of it (ctime), in nanoseconds.
        attributes: Number of its names, mode and owners: a change of these alone explains a new `changed_ns`.
    """

    key: tuple[int, int]
    stamp: Stamp
    changed_ns: int
    attributes: tuple[int, int, int, int]

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return what `os.stat` or `os.fstat` says."""
        attributes = status.st_nlink, status.st_mode, status.st_uid, status.st_gid
        return cls(key_of(status), stamp_of(status), status.st_ctime_ns, attributes)

    def changes(self, now: Identity, *, sealed: bool = False) -> tuple[str, str] | None:
        """Return how the content may have changed: what it was and what it is, for an error; none where it has not.

        A file that was written anew under its old times, as `rsync --inplace --times` does, has another ctime. A link more or less, or
        another mode or owner, changes that too, and is no change of the content.

        Args:
            now: The same file, later.
            sealed: Whether all of it has checksums that are compared: a ctime alone, which a new name changes as well, then says nothing.
        """
        (_, size, written), (_, size_now, written_now) = self.stamp, now.stamp
        if size != size_now:
            return f"{size:,} bytes", f"{size_now:,}"
        if written != written_now:
            return f"written {_shown(written)}", _shown(written_now)
        touched = self.changed_ns != now.changed_ns and self.attributes == now.attributes
        if touched and not sealed and os.name != "nt":  # there it is the time of creation
            return f"changed {_shown(self.changed_ns)}", _shown(now.changed_ns)
        return None


@dataclass(frozen=True)
class Sent:
    """What another process, there or on another machine, has to find under the path of a file.

    Attributes:
        machine: Where the file was opened, of `machine`.
        identity: What it was.
    """

    machine: str
    identity: Identity

    def differs(self, found: Sent) -> tuple[str, str] | None:
        """Return what was sent and what is here, for an error; none where it is that file.

        On another machine the number of a file may be another, as its ctime may, so size and time of the last change count there.
        """
        if self.machine != found.machine:
            elsewhere = Identity(found.identity.key, found.identity.stamp, self.identity.changed_ns, found.identity.attributes)
            return self.identity.changes(elsewhere)
        if self.identity.key != found.identity.key:
            return "the file that was opened", "another one"
        return self.identity.changes(found.identity)


@cache
def boot_id() -> str:
    """Return what names the time between two starts of this machine, as no other machine has; empty where the system has none."""
    with suppress(OSError, ValueError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


def machine() -> str:
    """Return what tells this machine, since it was started, from others; where the system has nothing of the kind, its name."""
    return boot_id() or socket.gethostname()


def _shown(moment: int) -> str:
    """Return a time in nanoseconds as text, in UTC, to the last digit: two writes may be a millisecond apart."""
    seconds, rest = divmod(moment, 10**9)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{rest:09d}"
