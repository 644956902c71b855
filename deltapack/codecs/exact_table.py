"""The table of an exact chunk: which contexts there are, what is predicted, and how often each symbol occurs (spec/codecs/exact.md).

It stands by itself in the bytes of a chunk and speaks of nothing but the type of the numbers, so that several chunks can share one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.exact_bytes import Cursor, need, varints
from deltapack.kernels.exact_numbers import Numbers, symbol_table
from deltapack.kernels.layout import BIT, STEPS, Counts

__all__ = ["LANES", "MOST_RANGES", "MOST_TABLE_BYTES", "NEVER", "PRECISIONS", "Table", "read_table", "write_table"]

LANES = (1, 4, 8, 32)
"""Of the range coder, in the order in which a reference to a shared table numbers them."""
PRECISIONS = (10, 11, 12)
MOST_RANGES = 16
MOST_TABLE_BYTES = 1 << 15
"""No table is longer: two classes of 16 contexts with 256 frequencies of two bytes each, and two staircases."""
NEVER = 1 << 41
"""What a symbol costs that a context does not have: more than all symbols that there can be."""
_COSTS = np.concatenate([[NEVER], -np.round(np.log2(np.arange(1, (1 << max(PRECISIONS)) + 1)) * BIT).astype(np.int64)])
"""What a symbol of each frequency takes, less the precision."""
_CLASSES, _FAR, _STAIRS = 1, 2, 128


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        precision: Frequencies of a context sum to 2^precision.
        lanes: Lanes of the range coder.
        far: The least exponent that has a symbol of its own where the sign changes, or -1.
        starts: For each class where the ranges of context bytes begin that share frequencies, increasing, the first at 0.
        stairs: For each class the steps of its staircase, `[64] u64`, or none.
        frequencies: Of each symbol in each context, `[contexts, 256]`; contexts are numbered through ranges and classes.
    """

    precision: int
    lanes: int
    far: int
    starts: tuple[tuple[int, ...], ...]
    stairs: tuple[NDArray[np.uint64] | None, ...]
    frequencies: NDArray[np.int64]

    def with_lanes(self, lanes: int) -> Table:
        """Return the table for another number of lanes."""
        return replace(self, lanes=lanes)

    @property
    def kinds(self) -> int:
        """Number of classes."""
        return len(self.starts)

    @property
    def maps(self) -> NDArray[np.uint8]:
        """The context of each class and context byte, `[kinds, 256]`."""
        rows, before = [], 0
        for starts in self.starts:
            rows.append(before + np.searchsorted(np.array(starts), np.arange(256), side="right") - 1)
            before += len(starts)
        return np.array(rows, np.uint8)

    @property
    def costs(self) -> NDArray[np.int64]:
        """What each symbol takes in each context, in units of 2^-16 bits, `[contexts, 256]`."""
        costs: NDArray[np.int64] = _COSTS[self.frequencies] + self.precision * BIT
        return costs

    @property
    def steps(self) -> NDArray[np.uint64] | None:
        """What is added to the numbers of each class, `[kinds, 64]`; none where nothing is."""
        if all(own is None for own in self.stairs):
            return None
        return np.array([np.zeros(STEPS, np.uint64) if own is None else own for own in self.stairs])


def write_table(table: Table, numbers: Numbers) -> bytes:
    """Spell a table."""
    flags = (_CLASSES if table.kinds == 2 else 0) | (_FAR if table.far >= 0 else 0)
    out = bytearray([table.precision, table.lanes, flags, *([table.far] if table.far >= 0 else [])])
    rows = iter(table.frequencies)
    for starts, steps in zip(table.starts, table.stairs, strict=True):
        out.append(len(starts) | (0 if steps is None else _STAIRS))
        if steps is not None:
            moves = np.diff(steps, prepend=np.uint64(0)) & np.uint64((1 << numbers.width) - 1)
            out += varints(moves)
        own = [next(rows) for _ in starts]
        used = [np.flatnonzero(row) for row in own]
        out += b"".join(bytes([start, places[0], places[-1]]) for start, places in zip(starts, used, strict=True))
        out += varints(np.concatenate([row[places[0] : places[-1] + 1] for row, places in zip(own, used, strict=True)]))
    return bytes(out)


def read_table(raw: bytes, numbers: Numbers) -> Table:
    """Read a table.

    Raises:
        FormatError: It is damaged, or has what numbers of this type cannot have (rule R9).
    """
    cursor = Cursor(raw)
    precision, lanes, flags = (cursor.byte(f"the {what} of the table") for what in ("precision", "lanes", "flags"))
    need(precision in PRECISIONS, "no such precision", expected=PRECISIONS, found=precision)
    need(lanes in LANES, "no such number of lanes", expected=LANES, found=lanes)
    need(flags & ~(_CLASSES | _FAR) == 0, "flags that mean nothing", found=flags)
    far = cursor.byte("the least far exponent") if flags & _FAR else -1
    need(far < 0 or numbers.far, "far symbols for numbers that have none")
    need(far <= numbers.mask, "the least far exponent is too large", expected=f"at most {numbers.mask}", found=far)
    legal = symbol_table(numbers, far).legal
    starts, stairs, rows = [], [], []
    for _ in range(2 if flags & _CLASSES else 1):
        head = cursor.byte("the number of ranges")
        ranges = head & ~_STAIRS
        need(1 <= ranges <= MOST_RANGES, "no such number of ranges", expected=f"1 to {MOST_RANGES}", found=ranges)
        need(head < _STAIRS or numbers.stairs >= 0, "a staircase for numbers that have none")
        stairs.append(_read_steps(cursor, numbers) if head >= _STAIRS else None)
        heads = [tuple(cursor.take(3, "a range")) for _ in range(ranges)]
        own = tuple(head[0] for head in heads)
        rows += _read_frequencies(cursor, [head[1:] for head in heads], 1 << precision, legal)
        need(own[0] == 0 and all(a < b for a, b in pairwise(own)), "ranges do not begin at 0 and increase", found=own)
        need(own[-1] <= numbers.mask, "a range that no number is in", expected=f"at most {numbers.mask}", found=own[-1])
        starts.append(own)
    cursor.end("the table")
    return Table(precision, lanes, far, tuple(starts), tuple(stairs), np.array(rows))


def _read_steps(cursor: Cursor, numbers: Numbers) -> NDArray[np.uint64]:
    moves = cursor.numbers(STEPS, (1 << numbers.width) - 1, "a step")
    return np.cumsum(moves, dtype=np.uint64) & np.uint64((1 << numbers.width) - 1)


def _read_frequencies(cursor: Cursor, spans: list[tuple[int, ...]], total: int, legal: NDArray[np.bool_]) -> list[Counts]:
    """Return the rows of contexts whose first and last symbols are given."""
    for first, last in spans:
        need(first <= last, "symbols end before they begin", expected=f"{first} or more", found=last)
    values = cursor.numbers(sum(last - first + 1 for first, last in spans), total, "a frequency").astype(np.int64)
    rows, at = np.zeros((len(spans), 256), np.int64), 0
    for row, (first, last) in zip(rows, spans, strict=True):
        row[first : last + 1] = values[at : at + last - first + 1]
        at += last - first + 1
        need(row[first] and row[last], "a first or last symbol that does not occur")
    illegal = np.flatnonzero(rows[:, ~legal].any(axis=0))
    need(not len(illegal), "a symbol that numbers of this type do not have", found=np.flatnonzero(~legal)[illegal].tolist())
    sums = rows.sum(axis=1)
    need((sums == total).all(), "frequencies have another sum", expected=total, found=sums.tolist())
    return list(rows)
