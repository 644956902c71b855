"""What of a pack a use case reads, and by which check: so that a damaged bit costs one check, and not the whole use case again.

While `traced` runs a use case, each call of the package's reader that reads and checks bytes is noted with the bytes that it read. What a
use case does follows from the bytes that it was given. So if a bit is damaged, the calls before the first that read it give what they gave,
and that one, done once more on the damaged bytes, does what it would do in the use case: raise, or hand on damage.
"""

from __future__ import annotations

import importlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from deltapack.errors import DeltapackError, FormatError
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.sources.reading import Faults

reader: Any = importlib.import_module("deltapack.format.reader")  # what it imports is replaced below

__all__ = ["Check", "Memory", "Trace", "in_memory", "open_in_memory", "traced"]


class Memory:
    """A pack in memory that tests change while it is open."""

    def __init__(self, path: Path, data: bytearray) -> None:
        self.path, self.data = path, data

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > len(self.data):
            raise FormatError("the pack is cut short", path=self.path, rule="R2")
        return bytes(self.data[offset : offset + length])

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read(offset, len(view))

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def in_memory(files: dict[Path, bytearray]) -> Iterator[None]:
    """Let packs be read from memory instead of the files of these names."""
    usual = reader.open_pack_file

    def opened(path: Path, faults: Faults) -> Any:
        return (Memory(path, files[path]), None) if path in files else usual(path, faults)

    with mock.patch.object(reader, "open_pack_file", opened), mock.patch.object(reader, "LocalFile", (reader.LocalFile, Memory)):
        yield


def open_in_memory(path: Path, data: bytearray) -> PackReader:
    """Open a pack whose bytes are these."""
    with in_memory({path: data}):
        return PackReader(path)


@dataclass
class Check:
    """A call that reads bytes and checks them.

    Attributes:
        name: What was called, and for what.
        again: Does it once more, on the bytes as they are by now.
        spans: Begin and end of each run of bytes that it read.
    """

    name: str
    again: Callable[[], object]
    spans: list[tuple[int, int]] = field(default_factory=list)

    def tells(self) -> bool:
        """Whether it raises an error of the package."""
        try:
            self.again()
        except DeltapackError:
            return True
        return False


@dataclass
class Trace:
    """What use cases read of a pack.

    Attributes:
        checks: The calls, by what they were called with.
        unchecked: Runs of bytes that were read outside of such a call.
    """

    checks: dict[Any, Check] = field(default_factory=dict)
    unchecked: set[tuple[int, int]] = field(default_factory=set)

    def readers_of(self) -> Callable[[int], list[Check]]:
        """Return the function that tells which checks read a byte."""
        ends = sorted({end for check in self.checks.values() for span in check.spans for end in span})
        rows: list[list[Check]] = [[] for _ in range(len(ends) + 1)]
        for check in self.checks.values():
            for start, stop in check.spans:
                for number in range(bisect_right(ends, start), bisect_right(ends, stop - 1) + 1):
                    if check not in rows[number]:
                        rows[number].append(check)
        return lambda place: rows[bisect_right(ends, place)]

    def bytes_read(self) -> set[int]:
        """Places of the bytes that were read."""
        return {place for check in self.checks.values() for start, stop in check.spans for place in range(start, stop)}


@contextmanager
def traced(path: Path, data: bytearray, trace: Trace | None = None) -> Iterator[Trace]:
    """Note what is read of the pack of a path, which is in memory; further use cases may add to a trace."""
    found, within, lock = trace or Trace(), threading.local(), threading.Lock()

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            owner = self._reader if isinstance(self, ChunkedBlob) else self
            if (name == "open" and Path(args[0]) != path) or (name != "open" and getattr(owner, "path", None) != path):
                return function(self, *args, **kwargs)
            place = self._starts if isinstance(self, ChunkedBlob) else ()
            check = Check(f"{name} {args}", _again(name, function, self, args, path, data))
            with lock:
                check = found.checks.setdefault((name, repr(args), tuple(place)), check)
            before, within.check = getattr(within, "check", None), check
            try:
                return function(self, *args, **kwargs)
            finally:
                within.check = before

        return call

    def read(self: PackReader, offset: int, length: int, usual: Callable[..., bytes] = PackReader.read) -> bytes:
        if self.path == path and length:
            check, span = getattr(within, "check", None), (offset, offset + length)
            with lock:
                if check is None:
                    found.unchecked.add(span)
                elif span not in check.spans:
                    check.spans.append(span)
        return usual(self, offset, length)

    rows: list[tuple[Any, str, str]] = [(PackReader, "__init__", "open"), (ChunkedBlob, "streams", "streams")]
    rows += [(PackReader, name, name) for name in ("plain_blob", "chunked_blob", "check_padding")]
    with mock.patch.object(PackReader, "read", read), in_memory({path: data}):
        patches = [mock.patch.object(owner, name, noting(told, getattr(owner, name))) for owner, name, told in rows]
        for patch in patches:
            patch.start()
        try:
            yield found
        finally:
            for patch in patches:
                patch.stop()


def _again(name: str, function: Callable[..., Any], owner: Any, args: tuple[Any, ...], path: Path, data: bytearray) -> Callable[[], object]:
    if name == "open":
        return lambda: open_in_memory(path, data)

    def again() -> object:
        (owner._reader if isinstance(owner, ChunkedBlob) else owner)._closed = False
        return function(owner, *args)

    return again
