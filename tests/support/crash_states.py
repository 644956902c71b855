"""What a disk may hold after the power went: a model of a file system that keeps what was synced, and of the rest what it likes.

Writes of a file that was not synced since may be missing, cut or zeros; entries of folders (new names, renames, removals) may be missing in
any order until the folder is synced, a rename and an exchange as a whole. So ALICE and CrashMonkey look at applications and file systems.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.file_layer import Layer

__all__ = ["Event", "History", "flat", "recorder"]

_EACH = 24
"""Events that may be missing are left out, or alone there, one by one, as long as there are no more; else so many of them, drawn."""


@dataclass(frozen=True)
class Event:
    """A change: `write` (place, bytes), `size` and `sync` of a node, or of entries: pairs of a folder and a name, and what they lead to."""

    what: str
    node: int = -1
    place: int = 0
    data: bytes = b""
    entries: tuple[tuple[int, str, int | None], ...] = ()


Node = bytearray | dict[str, int]


@dataclass
class History:
    """What was there, and what happened: nodes are numbers, and the first is the folder that is looked at."""

    start: dict[int, Node] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def state(self, chosen: Sequence[tuple[Event, str]]) -> dict[str, bytes]:
        """Return the files after some events, each done `whole`, of writes also `half` or as `zeros`."""
        nodes: dict[int, Node] = {number: node.copy() for number, node in self.start.items()}
        for event, how in chosen:
            _apply(nodes, event, how)
        return dict(_files(nodes, 0, "", frozenset()))

    def finished(self) -> dict[str, bytes]:
        """Return the files after all of it."""
        return self.state([(event, "whole") for event in self.events])

    def crashes(self, rng: random.Random) -> Iterator[dict[str, bytes]]:
        """Yield what the disk may hold whenever the power goes."""
        for stop in range(len(self.events) + 1):
            for chosen in self._choices(stop, rng):
                yield self.state(chosen)

    def _choices(self, stop: int, rng: random.Random) -> Iterator[list[tuple[Event, str]]]:
        events = [event for event in self.events[:stop] if event.what != "sync"]
        kept = self._kept(stop)
        loose = [number for number, event in enumerate(events) if id(event) not in kept]
        if not loose and stop < len(self.events):
            yield [(event, "whole") for event in events]
            return
        few = loose if len(loose) <= _EACH else sorted(rng.sample(loose, _EACH))
        away = [frozenset(loose), frozenset[int](), *(frozenset({one}) for one in few), *(frozenset(loose) - {one} for one in few)]
        away += [frozenset(one for one in loose if rng.random() < 0.5) for _ in range(8)]
        for missing in dict.fromkeys(away):
            yield [(event, "whole") for number, event in enumerate(events) if number not in missing]
        for one in few:
            if events[one].what == "write":
                for how in ("half", "zeros"):
                    yield [(event, how if number == one else "whole") for number, event in enumerate(events)]

    def _kept(self, stop: int) -> set[int]:
        """Return the events that are on the disk for certain: what they changed was synced after them."""
        synced: set[int] = set()
        kept = set()
        for event in reversed(self.events[:stop]):
            if event.what == "sync":
                synced.add(event.node)
            elif _needs(event) <= synced:
                kept.add(id(event))
        return kept


def _needs(event: Event) -> set[int]:
    """Return what has to be synced after an event: of a rename the folder of the new name, as the rename is there as a whole."""
    entered = {folder for folder, _, leads in event.entries if leads is not None}
    return entered or {folder for folder, _, _ in event.entries} or {event.node}


def _apply(nodes: dict[int, Node], event: Event, how: str) -> None:
    if event.what in ("write", "size"):
        data = nodes.setdefault(event.node, bytearray())
        assert isinstance(data, bytearray)
        if event.what == "size":
            del data[event.place :]
            data.extend(bytes(event.place - len(data)))
            return
        part = event.data[: len(event.data) // 2] if how == "half" else bytes(len(event.data)) if how == "zeros" else event.data
        data.extend(bytes(max(0, event.place - len(data))))
        data[event.place : event.place + len(part)] = part
        return
    if event.node >= 0:
        nodes.setdefault(event.node, {} if event.what == "folder" else bytearray())
    for folder, name, leads in event.entries:
        entries = nodes.setdefault(folder, {})
        assert isinstance(entries, dict)
        if leads is None:
            entries.pop(name, None)
        else:
            entries[name] = leads


def _files(nodes: Mapping[int, Node], number: int, prefix: str, above: frozenset[int]) -> Iterator[tuple[str, bytes]]:
    entries = nodes[number]
    assert isinstance(entries, dict)
    for name, leads in sorted(entries.items()):
        node = nodes.get(leads, bytearray())
        if isinstance(node, bytearray):
            yield prefix + name, bytes(node)
        elif leads not in above:  # a rename of which a half is there could make a circle
            yield from _files(nodes, leads, f"{prefix}{name}/", above | {number})


def flat(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder of this machine."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def recorder(history: History, layer: Layer, folder: Path) -> Callable[[str, tuple[Any, ...], Any, Any], Any]:
    """Return what is told of each call, and notes what it changes in a folder."""
    return _Recorder(history, layer, folder)


class _Recorder:
    def __init__(self, history: History, layer: Layer, folder: Path) -> None:
        self._history, self._layer = history, layer
        self._numbers: dict[int, int] = {}
        self._add(folder)

    def _add(self, path: Path) -> int:
        number = self._numbers[path.stat().st_ino] = len(self._history.start)
        self._history.start[number] = {}
        self._history.start[number] = (
            {one.name: self._add(one) for one in sorted(path.iterdir())} if path.is_dir() else bytearray(path.read_bytes())
        )
        return number

    def _new(self, inode: int) -> int:
        number = self._numbers[inode] = 1 + max([*self._numbers.values(), *(event.node for event in self._history.events), 0])
        return number

    def _entry(self, path: Any, folder: int | None = None) -> tuple[int, str] | None:
        """Return the folder and the name of an entry; nothing where it is in none that is looked at."""
        text = os.fsdecode(path)
        inode = (os.stat(folder) if folder is not None else os.stat(os.path.dirname(os.path.abspath(text)))).st_ino
        return (self._numbers[inode], os.path.basename(text)) if inode in self._numbers else None

    def _note(self, what: str, node: int = -1, place: int = 0, data: bytes = b"", entries: Any = ()) -> None:
        self._history.events.append(Event(what, node, place, data, tuple(entries)))

    def __call__(self, name: str, arguments: tuple[Any, ...], named: Any, result: Any) -> Any:
        handler = getattr(self, f"_on_{name}", None)
        if handler is None:
            return None
        if result is None:
            return handler(arguments, named, None, None)
        return handler(arguments, named, named["before"], result[0])

    def _node(self, handle: int) -> int | None:
        return self._numbers.get(os.fstat(handle).st_ino)

    def _on_open(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if result is None:
            try:
                return os.stat(arguments[0], dir_fd=named.get("dir_fd"), follow_symlinks=False) is not None
            except FileNotFoundError:
                return False
        flags = arguments[1]
        if flags & os.O_CREAT and not before:
            entry = self._entry(arguments[0], named.get("dir_fd"))
            if entry is not None:
                node = self._new(os.fstat(result).st_ino)
                self._note("file", node, entries=[(*entry, node)])
        elif flags & os.O_TRUNC and (known := self._node(result)) is not None:
            self._note("size", known, 0)
        return None

    def _on_mkdir(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        entry = self._entry(arguments[0], named.get("dir_fd"))
        if named.get("before", 0) == 0 or entry is None:
            return None
        node = self._new(os.stat(arguments[0], dir_fd=named.get("dir_fd")).st_ino)
        self._note("folder", node, entries=[(*entry, node)])
        return None

    def _wrote(self, handle: int, place: int, count: int, data: Any) -> None:
        node = self._node(handle)
        if node is not None and count:
            self._note("write", node, place, bytes(data[:count]))

    def _on_write(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if before is None:
            return os.lseek(arguments[0], 0, os.SEEK_CUR)
        self._wrote(arguments[0], before, result, memoryview(arguments[1]).cast("B"))
        return None

    def _on_pwrite(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if result is not None:
            self._wrote(arguments[0], arguments[2], result, memoryview(arguments[1]).cast("B"))

    def _copied(self, handle: int, place: int, count: int) -> None:
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            file.seek(place)
            self._wrote(handle, place, count, file.read(count))

    def _on_copy_file_range(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if result is not None:
            self._copied(arguments[1], arguments[4], result)

    def _on_sendfile(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if before is None:
            return os.lseek(arguments[0], 0, os.SEEK_CUR)
        self._copied(arguments[0], before, result)
        return None

    def _on_ftruncate(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if named.get("before", 0) != 0 and (node := self._node(arguments[0])) is not None:
            self._note("size", node, arguments[1])

    def _on_fsync(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if "before" in named and (node := self._node(arguments[0])) is not None:
            self._note("sync", node)

    _on_fdatasync = _on_fsync

    def _on_rename(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        if "before" not in named:
            return os.stat(arguments[0], follow_symlinks=False).st_ino
        source, target, node = self._entry(arguments[0]), self._entry(arguments[1]), self._numbers.get(before)
        leaves = [] if source is None else [(*source, None)]
        if target is not None:
            self._note("move", entries=[*leaves, (*target, node if node is not None else self._unseen(arguments[1]))])
        elif leaves:
            self._note("move", entries=leaves)
        return None

    _on_replace = _on_rename

    def _unseen(self, path: Any) -> int:
        """Return the number of what comes from a folder that is not looked at, as it is now, and on the disk for certain."""
        return self._add(Path(path))

    def _on_link(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        target = self._entry(arguments[1])
        if "before" in named and target is not None:
            self._note("enter", entries=[(*target, self._numbers[os.stat(arguments[1]).st_ino])])

    def _on_unlink(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        entry = self._entry(arguments[0], named.get("dir_fd"))
        if "before" in named and entry is not None:
            self._note("leave", entries=[(*entry, None)])

    _on_remove = _on_rmdir = _on_unlink

    def _on_renameat2(self, arguments: Any, named: Any, before: Any, result: Any) -> Any:
        """A rename that replaces nothing, or with the flag 2 an exchange."""
        if arguments[2] != 2:
            return self._on_rename(arguments, named, before, result) if result is not False else None
        if result:
            one, other = (self._entry(path) for path in arguments[:2])
            assert one is not None and other is not None
            now = [self._numbers[os.stat(path).st_ino] for path in arguments[:2]]
            self._note("swap", entries=[(*one, now[0]), (*other, now[1])])
        return None
