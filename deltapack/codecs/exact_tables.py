"""The tables that chunks of a pack share (spec/codecs/exact.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from deltapack.codecs.exact_bytes import Cursor, need
from deltapack.codecs.exact_table import MOST_TABLE_BYTES, Table, read_table
from deltapack.kernels.exact_numbers import Numbers

__all__ = ["NO_TABLES", "SharedTables"]

_KEPT = 64
"""Tables that stay parsed: a blob of 20 bytes may take 64 KiB then."""


@dataclass(frozen=True)
class SharedTables:
    """Tables as blobs. They are parsed when a chunk refers to them, as a table may suit the numbers of one chunk and not of another.

    Attributes:
        blobs: Of all tables of a pack, in its order.
        first: The one that is number 0 for a chunk.
    """

    blobs: tuple[bytes, ...] = ()
    first: int = 0

    def table(self, number: int, numbers: Numbers) -> Table:
        """Return the table that a chunk of such numbers calls by a number.

        Raises:
            FormatError: There is none, it is damaged, or it has what these numbers cannot have (rules R9 and R10).
        """
        place = self.first + number
        need(place < len(self.blobs), "no such shared table", expected=f"below {len(self.blobs)}", found=place)
        return _parsed(self.blobs[place], numbers)


NO_TABLES = SharedTables()


@lru_cache(maxsize=_KEPT)
def _parsed(blob: bytes, numbers: Numbers) -> Table:
    cursor = Cursor(blob)
    raw = cursor.stream(1, MOST_TABLE_BYTES, "a shared table")
    cursor.end("a shared table")
    return read_table(raw, numbers)
