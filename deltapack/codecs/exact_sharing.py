"""Which tables the chunks of a pack are to share: made from samples of them, before any is encoded (spec/codecs/exact.md, section 4).

A table of its own takes a chunk some 30 to 200 bytes, more than what changed in a small tensor takes itself. So the samples are divided
into groups by how their symbols are spread, and each group gets a table that is worth its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
_SPARSE_TOO = 16
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
    kinds: dict[Numbers, list[NDArray[np.int64]]] = {}
    for sample in samples:
        numbers = numbers_of(sample.dtype)
        counts = _counts_of(sample, numbers)
        if counts is not None:
            kinds.setdefault(numbers, []).append(counts)
    return tuple(blob for numbers, found in kinds.items() for blob in _tables_of(found, numbers))


def _counts_of(sample: Sample, numbers: Numbers) -> NDArray[np.int64] | None:
    """Return how often each symbol occurs for each context byte, `[256 * 256]`; none where nothing changed.

    Where so few numbers changed that their positions are stored, only those count that changed.
    """
    base, tuned = (np.ascontiguousarray(side).view(numbers.storage) for side in (sample.base, sample.tuned))
    if not len(base):
        return None
    values = symbols_between(base, tuned, numbers)
    if not values.changed:
        return None
    one_class = np.zeros(-(-len(base) // EXACT_BLOCK), np.uint8)
    whole: NDArray[np.int64] = kernels.active().count_symbols(base, one_class, values.symbols, numbers, 1)[0]
    if values.changed * _SPARSE_TOO <= len(base):
        changed = whole.copy()
        changed[:, 0] = 0
        gaps = values.changed * (np.log2(len(base) / values.changed) + 1.5)
        if _bits_alone(changed, numbers) + gaps < _bits_alone(whole, numbers):
            whole = changed
    return whole.reshape(-1)


def _bits_alone(counts: NDArray[np.int64], numbers: Numbers) -> float:
    """Return what symbols take with a table of their own, and that table."""
    table = _table_for(counts, lambda row: row)
    return float(_bits(counts.reshape(1, -1), [table])[0, 0]) + 8 * len(write_stream(write_table(table, numbers)))


def _table_for(counts: NDArray[np.int64], widened: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Table:
    """Return a table for symbols that occur so often, `[256, 256]`, once those of each context are `widened`."""
    starts = kernels.active().context_ranges(counts, MOST_RANGES)[0]
    rows = [kernels.active().frequencies_of(widened(row), _PRECISION) for row in np.add.reduceat(counts, starts, axis=0)]
    return Table(_PRECISION, 8, -1, (tuple(map(int, starts)),), (None,), np.array(rows))


def _shared_table(counts: NDArray[np.int64], numbers: Numbers) -> Table:
    return _table_for(counts.reshape(256, 256), lambda row: _widened(row, numbers))


def _widened(row: NDArray[np.int64], numbers: Numbers) -> NDArray[np.int64]:
    """Let symbols occur once that other chunks may have: all up to a few above the largest, or the next ones where few numbers change.

    There a 4096th that nobody uses is much beside what is.
    """
    legal, used = symbol_table(numbers, -1).legal, np.flatnonzero(row)
    room = np.zeros(256, np.bool_)
    if (row.sum() - row[0]) * _WIDE > row.sum():
        room[: used[-1] + 5] = True
    else:
        room[:3] = True
        room[used] = True
    return np.where(room & legal & (row == 0), 1, row)


def _bits(samples: NDArray[np.int64], tables: Sequence[Table]) -> NDArray[np.float64]:
    """Return what the symbols of each sample take with each table, `[samples, tables]`."""
    costs = np.array([table.costs[table.maps[0]].reshape(-1) for table in tables])
    bits: NDArray[np.float64] = samples @ costs.T / BIT
    return bits


def _tables_of(samples: list[NDArray[np.int64]], numbers: Numbers) -> list[bytes]:
    """Divide samples of one kind of numbers into groups, as many as pay."""
    counts = np.array(samples)
    alone = np.array([_bits_alone(own.reshape(256, 256), numbers) for own in counts])
    tables, best = list[Table](), alone.copy()
    for _ in range(_MOST_TABLES):
        seed = counts.sum(axis=0) if not tables else counts[int(np.argmax(best - alone))]
        tried = _refined(counts, [*tables, _shared_table(seed, numbers)], alone, numbers)
        after = np.minimum(alone, _bits(counts, tried).min(axis=1))
        if after.sum() + _size(tried, numbers) >= best.sum() + _size(tables, numbers):
            break
        tables, best = tried, after
    return [write_stream(write_table(table, numbers)) for table in tables]


def _size(tables: Sequence[Table], numbers: Numbers) -> float:
    return sum(8 * len(write_stream(write_table(table, numbers))) + _ENTRY_BITS for table in tables)


def _refined(counts: NDArray[np.int64], tables: list[Table], alone: NDArray[np.float64], numbers: Numbers) -> list[Table]:
    """Give each sample to the table that suits it best, and each table to the samples that it has then, a few times over."""
    for _ in range(_ROUNDS):
        bits = _bits(counts, tables)
        nearest = np.argmin(bits, axis=1)
        is_shared = bits.min(axis=1) < alone
        groups = [counts[is_shared & (nearest == place)].sum(axis=0) for place in range(len(tables))]
        tables = [_shared_table(group, numbers) if group.any() else table for group, table in zip(groups, tables, strict=True)]
    return tables
