"""The bytes of a pickle that is read as data, and the stack and memory that its instructions work on."""

from __future__ import annotations

__all__ = ["MARK", "BadPickleError", "PickleReader"]

_MOST_TUPLES = 1 << 10
"""Tuples that one may hold, all within them counted. The arguments of a tensor hold three."""


class Mark:
    """Where a list of arguments begins on the stack."""


MARK = Mark()


class BadPickleError(Exception):
    """A pickle that no pickler writes."""


class PickleReader:
    """The bytes of a pickle, and the stack and memory that it works on."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data, self.at = data, start
        self.stack: list[object] = []
        self.containers = 0
        self.memory: dict[int, object] = {}
        self.kept: list[object] = []
        self.unfolded: dict[int, int] = {}
        self.references: list[object] = []

    def byte(self) -> int:
        """Return the next byte."""
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.data) - self.at:
            raise BadPickleError("the end")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        """Return the next bytes as an integer, the least significant first."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """Return the text up to the next line end."""
        end = self.data.find(b"\n", self.at)
        text = self.take(end - self.at if end >= 0 else len(self.data))
        self.at += 1
        return text.decode()

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_container(self, value: object) -> None:
        """Put a list or dict on the stack, and count it; tuples of tuples count, too."""
        self.containers += 1
        self.stack.append(value)

    def push_tuple(self, value: tuple[object, ...]) -> None:
        """Put a tuple on the stack, unless it unfolds to many: who hashes, compares or prints it goes through what it holds each time."""
        parts = [part for part in value if isinstance(part, tuple)]
        if parts:
            size = sum(self.unfolded.get(id(part), 1) for part in parts)
            if size > _MOST_TUPLES:
                raise BadPickleError("tuples within tuples without end")
            self.containers += 1
            self.unfolded[id(value)] = size + 1
            self.kept.append(value)  # or another tuple may get its id
        self.stack.append(value)

    def pop(self) -> object:
        """Take a value off the stack."""
        value = self.stack.pop()
        if value is MARK:
            raise BadPickleError("a mark where a value is wanted")
        return value

    def marked(self) -> list[object]:
        """Take everything above the last mark off the stack, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise BadPickleError("no mark")
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken
