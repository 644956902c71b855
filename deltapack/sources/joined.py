"""Several files read as one: the parts of a pack, one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from deltapack.sources.reading import Faults, Readable, read_exactly

__all__ = ["JoinedFile"]


class JoinedFile:
    """Files that are open, read at positions as if one stood after the other; by any number of threads.

    Attributes:
        path: What they are called together.
        size: Bytes of all of them.
        parts: The files.

    Args:
        path: What they are called together.
        parts: The files, in order; closed with this one.
        faults: The errors to raise.
    """

    def __init__(self, path: Path, parts: Sequence[Readable], faults: Faults) -> None:
        self.path, self.parts, self._faults = path, tuple(parts), faults
        self._ends = list(accumulate(part.size for part in parts))
        self.size = self._ends[-1] if self._ends else 0

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raises as `read_into`."""
        return read_exactly(self, self._faults, offset, length)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (format B) with the bytes from `offset`.

        Raises:
            DeltapackError: As `faults` says: the files end before, or cannot be read.
        """
        end = offset + len(view)
        if end > self.size:
            raise self._faults.ended(self.path, end, self.size)
        at, number = offset, bisect_right(self._ends, offset)
        while at < end:
            part = self.parts[number]
            start = at - (self._ends[number] - part.size)
            count = min(end - at, part.size - start)
            part.read_into(start, view[at - offset : at - offset + count])
            at, number = at + count, number + 1

    def close(self) -> None:
        """Let all files go; closing twice is fine."""
        for part in self.parts:
            part.close()
