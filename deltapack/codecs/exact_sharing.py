"""Which tables the chunks of a pack are to share: made from samples of them, before any is encoded (spec/codecs/exact.md, section 4).

A table of its own takes a chunk some 30 to 200 bytes, more than what changed in a small tensor takes itself. So the samples are divided
into groups by how their symbols are spread, and each group gets a table that is worth its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import write_stream
from deltapack.codecs.exact_modelling import symbols_between
from deltapack.codecs.exact_table import MOST_RANGES, Table, write_table
from deltapack.dtypes import DType
from deltapack.kernels.exact_numbers import Numbers, numbers_of, symbol_table
from deltapack.kernels.layout import BIT, EXACT_BLOCK, Elements

__all__ = ["Sample", "learn_tables"]

_MOST_TABLES, _ROUNDS = 8, 4
_PRECISION = 12
_ENTRY_BITS = 8 * 48
"""What a table takes beside its bytes: its place in the index of a pack, and what aligns it."""
_PLACES_BITS = 8 * 4
"""What positions take beside their gaps."""
_DEAR = 1 << 24
"""What a symbol counts that a table does not have: 256 bits, so that sums stay exact in f64."""
_WIDE = 64
"""A context where more than one number in so many changed has a place for all symbols up to the largest, and a few above."""


@dataclass(frozen=True)
class Sample:
    """A chunk, or a part of one: elements of base and fine-tune, `[n]` in the storage type of their type."""

    base: Elements
    tuned: Elements
    dtype: DType


def learn_tables(samples: Iterable[Sample]) -> tuple[bytes, ...]:
    """Return tables that chunks like the samples may share, as blobs; none where tables of their own are as good.

    Args:
        samples: They are looked at one after the other, and none is kept. The same samples in the same order give the same tables.
    """
    kinds: dict[tuple[Numbers, bool], list[_Counts]] = {}
    for sample in samples:
        numbers = numbers_of(sample.dtype)
        counts = _counts_of(sample, numbers)
        if counts is not None:
            kinds.setdefault((numbers, counts.is_whole), []).append(counts)
    return tuple(blob for (numbers, _), found in kinds.items() for blob in _Group.of(found, numbers).tables())


class _Counts(NamedTuple):
    """How often each symbol occurs for each context byte: where there are some, `256 * byte + symbol`, and how many."""

    cells: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def is_whole(self) -> bool:
        """Whether numbers that did not change are among them."""
        return bool((self.cells & 255 == 0).any())


def _counts_of(sample: Sample, numbers: Numbers) -> _Counts | None:
    """Return the counts of a sample, none where nothing changed.

    Where so few numbers changed that their positions are stored, only those count that changed.
    """
    base, tuned = (np.ascontiguousarray(side).view(numbers.storage) for side in (sample.base, sample.tuned))
    if not len(base):
        return None
    values = symbols_between(base, tuned, numbers)
    if not values.changed:
        return None
    one_class = np.zeros(-(-len(base) // EXACT_BLOCK), np.uint8)
    first, (table,) = kernels.active().count_symbols(base, one_class, values.symbols, numbers, 1)
    rows, columns = np.nonzero(table)
    whole = _Counts((rows + first << 8) + columns, table[rows, columns])
    is_changed = columns > 0
    changed = _Counts(whole.cells[is_changed], whole.counts[is_changed])
    gaps = values.changed * (np.log2(len(base) / values.changed) + 1.5) + _PLACES_BITS
    is_sparse = gaps < _bits_of(whole, numbers) and gaps + _bits_of(changed, numbers) < _bits_of(whole, numbers)
    return changed if is_sparse else whole


def _bits_of(own: _Counts, numbers: Numbers) -> float:
    """Return what symbols take with a table that suits them and is in another place."""
    group = _Group.of([own], numbers)
    return float(group.bits([group.shared_table(group.counts[0])])[0, 0])


@dataclass(frozen=True)
class _Group:
    """Samples of the same numbers.

    Attributes:
        numbers: What they are.
        cells: Where any sample has symbols, increasing: `256 * byte + symbol`.
        counts: How many each sample has there, `[samples, cells]`: integers, so that sums are exact in any order.
    """

    numbers: Numbers
    cells: NDArray[np.int64]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, samples: Sequence[_Counts], numbers: Numbers) -> _Group:
        """Return samples as a group."""
        cells = np.unique(np.concatenate([own.cells for own in samples]))
        counts = np.zeros((len(samples), len(cells)))
        for row, own in zip(counts, samples, strict=True):
            row[np.searchsorted(cells, own.cells)] = own.counts
        return cls(numbers, cells, counts)

    def tables(self) -> list[bytes]:
        """Divide the samples into groups with a table each, as many as pay."""
        alone = np.array([self._bits_alone(row) for row in self.counts])
        tables, best = list[Table](), alone
        for _ in range(_MOST_TABLES):
            seed = self.counts[int(np.argmax(best - self._floor))] if tables else self.counts.sum(axis=0)
            tried = self._refined([*tables, self.shared_table(seed)], alone)
            after = np.minimum(alone, self.bits(tried).min(axis=1))
            if after.sum() + self._size(tried) >= best.sum() + self._size(tables):
                break
            tables, best = tried, after
        return [write_stream(write_table(table, self.numbers)) for table in tables]

    @cached_property
    def _floor(self) -> NDArray[np.float64]:
        """What each sample takes with the table that suits it alone."""
        return np.array([self.bits([self.shared_table(row)], row[None])[0, 0] for row in self.counts])

    def bits(self, tables: Sequence[Table], counts: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return what the symbols of each sample take with each table, `[samples, tables]`."""
        costs = np.array([np.minimum(table.costs, _DEAR)[table.maps[0][self.cells >> 8], self.cells & 255] for table in tables])
        bits: NDArray[np.float64] = (self.counts if counts is None else counts) @ costs.astype(np.float64).T / BIT
        return bits

    def shared_table(self, counts: NDArray[np.float64]) -> Table:
        """Return a table for symbols that occur so often, with room for what did not occur."""
        return self._table(counts, lambda row: _widened(row, self.numbers))

    def _table(self, counts: NDArray[np.float64], widened: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Table:
        rows, columns = self.cells >> 8, self.cells & 255
        first = int(rows[0])
        table = np.zeros((int(rows[-1]) - first + 1, 256), np.int64)
        table[rows - first, columns] = counts
        begins = kernels.active().context_ranges(table, MOST_RANGES)[0]
        frequencies = [kernels.active().frequencies_of(widened(row), _PRECISION) for row in np.add.reduceat(table, begins, axis=0)]
        starts = (0, *(int(row) + first for row in begins[1:]))
        return Table(_PRECISION, 8, -1, (starts,), (None,), np.array(frequencies))

    def _bits_alone(self, counts: NDArray[np.float64]) -> float:
        """Return what the symbols of a sample take with a table of their own, and the table."""
        table = self._table(counts, lambda row: row)
        return float(self.bits([table], counts[None])[0, 0]) + 8 * len(write_stream(write_table(table, self.numbers)))

    def _size(self, tables: Sequence[Table]) -> int:
        return sum(8 * len(write_stream(write_table(table, self.numbers))) + _ENTRY_BITS for table in tables)

    def _refined(self, tables: list[Table], alone: NDArray[np.float64]) -> list[Table]:
        """Give each sample to the table that suits it best, and each table to the samples that it has then, a few times over."""
        for _ in range(_ROUNDS):
            bits = self.bits(tables)
            nearest, is_shared = np.argmin(bits, axis=1), bits.min(axis=1) < alone
            sums = [self.counts[is_shared & (nearest == place)].sum(axis=0) for place in range(len(tables))]
            tables = [self.shared_table(own) if own.any() else table for own, table in zip(sums, tables, strict=True)]
        return tables


def _widened(row: NDArray[np.int64], numbers: Numbers) -> NDArray[np.int64]:
    """Let symbols occur once that other chunks may have: all up to a few above the largest, or the next ones where few numbers change.

    There a 4096th that nobody uses is much beside what is.
    """
    legal, used = symbol_table(numbers, -1).legal, np.flatnonzero(row)
    room = np.zeros(256, np.bool_)
    if not len(used) or (row.sum() - row[0]) * _WIDE <= row.sum():
        room[:3] = True
    else:
        room[: used[-1] + 5] = True
    return np.where(room & legal & (row == 0), 1, row)
