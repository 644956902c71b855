"""What a writer asked the system to keep, in order: every sync with the content at that moment, every rename, every removal."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deltapack.format import placing


@dataclass(frozen=True)
class Event:
    """`sync` of a file (with its bytes) or a folder (with its names), `rename` to a name, `remove` of a tree or file."""

    what: str
    node: int
    content: object = None


@dataclass
class Journal:
    """Events in order; nodes are numbers of inodes, which stay what they are when a name changes."""

    events: list[Event] = field(default_factory=list)

    def synced(self, node: int, content: object, before: int) -> bool:
        """Whether the last sync of a node before an event was of this content."""
        found = [event.content for event in self.events[:before] if event.what == "sync" and event.node == node]
        return bool(found) and found[-1] == content

    def check(self, out: Path) -> None:
        """Everything under `out` was on the disk before it got its name, and its name before anything was removed."""
        node = os.stat(out).st_ino
        named = [number for number, event in enumerate(self.events) if event.what == "rename" and event.node == node]
        assert len(named) == 1 and self.events[named[0]].content == str(out)
        for path in [out, *out.rglob("*")]:
            content = sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()
            assert self.synced(os.stat(path).st_ino, content, named[0]), f"{path} was not synced before the rename"
        after = self.events[named[0] + 1 :]
        folder = os.stat(out.parent).st_ino
        kept = [event.what == "sync" and event.node == folder and out.name in (event.content or ()) for event in after]  # type: ignore[operator]
        assert any(kept), "the folder of the output was not synced after the rename"
        assert "remove" not in [event.what for event in after[: kept.index(True)]], "something was removed before the rename was durable"


def record(patch: pytest.MonkeyPatch) -> Journal:
    """Record what is synced, renamed and removed from here on."""
    journal = Journal()
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            patch.setattr(os, name, _syncing(journal, getattr(os, name)))
    patch.setattr(os, "link", _renaming(journal, os.link))
    patch.setattr(os, "rename", _renaming(journal, os.rename))
    patch.setattr(os, "replace", _renaming(journal, os.replace))
    patch.setattr(placing, "_renameat2", _renaming(journal, placing._renameat2))
    patch.setattr(shutil, "rmtree", _removing(journal, shutil.rmtree))
    return journal


def _syncing(journal: Journal, original: Callable[[int], None]) -> Callable[[int], None]:
    def sync(handle: int) -> None:
        original(handle)
        found = os.fstat(handle)
        content = sorted(os.listdir(handle)) if stat.S_ISDIR(found.st_mode) else os.pread(handle, found.st_size, 0)
        journal.events.append(Event("sync", found.st_ino, content))

    return sync


def _renaming(journal: Journal, original: Callable[..., Any]) -> Callable[..., Any]:
    def rename(source: Any, target: Any, *flags: int) -> Any:
        node = os.stat(source).st_ino
        done = original(source, target, *flags)
        if done is not False:  # what the system cannot do
            journal.events.append(Event("rename", node, str(target)))
        return done

    return rename


def _removing(journal: Journal, original: Callable[..., Any]) -> Callable[..., Any]:
    def rmtree(path: Any, *arguments: Any, **options: Any) -> None:
        if os.path.lexists(path):
            journal.events.append(Event("remove", os.lstat(path).st_ino))
        original(path, *arguments, **options)

    return rmtree
