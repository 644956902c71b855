"""The tables that chunks of a pack share (spec/codecs/exact.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.exact_bytes import Cursor, need
from deltapack.codecs.exact_table import MOST_TABLE_BYTES, NEVER, Table, read_table
from deltapack.errors import FormatError
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

    @property
    def are_some(self) -> bool:
        """Whether there is any table."""
        return self.first < len(self.blobs)

    def table(self, number: int, numbers: Numbers) -> Table:
        """Return the table that a chunk of such numbers calls by a number.

        Raises:
            FormatError: There is none, it is damaged, or it has what these numbers cannot have (rules R9 and R10).
        """
        place = self.first + number
        need(place < len(self.blobs), "no such shared table", expected=f"below {len(self.blobs)}", found=place)
        return _parsed(self.blobs[place], numbers)

    def cheapest(self, first: int, counts: NDArray[np.int64], numbers: Numbers) -> tuple[int, int] | None:
        """Return which table codes symbols in the fewest bits, or none where there is no table for all of them.

        Args:
            first: The least context byte.
            counts: Of each symbol for each context byte from it on, `[rows, columns]`.
            numbers: What the numbers are.

        Returns:
            The table's number, and the bits in units of 2^-16, without raw bits.
        """
        places, costs = _costs(self, numbers)
        if not len(places):
            return None
        rows, columns = np.nonzero(counts)
        bits = costs[:, (rows + first << 8) + columns] @ counts[rows, columns]
        best = int(np.argmin(bits))
        return (places[best], int(bits[best])) if bits[best] < NEVER else None


NO_TABLES = SharedTables()


@lru_cache(maxsize=_KEPT)
def _parsed(blob: bytes, numbers: Numbers) -> Table:
    cursor = Cursor(blob)
    raw = cursor.stream(1, MOST_TABLE_BYTES, "a shared table")
    cursor.end("a shared table")
    return read_table(raw, numbers)


@lru_cache(maxsize=4)
def _costs(tables: SharedTables, numbers: Numbers) -> tuple[list[int], NDArray[np.int64]]:
    """Return the numbers of the tables that an encoder may take for such numbers, and what each symbol costs, `[tables, 256 * 256]`.

    Those are tables of one class that predict numbers as they are, so that symbols need not be made anew for each.
    """
    places, rows = [], []
    for number in range(len(tables.blobs) - tables.first):
        try:
            table = tables.table(number, numbers)
        except FormatError:
            continue
        if table.kinds == 1 and table.far < 0 and table.steps is None:
            places.append(number)
            rows.append(table.costs[table.maps[0]].reshape(-1))
    return places, np.array(rows, np.int64)
