"""Which numbers share a table of frequencies, and what is in it, for the exact codec (spec/codecs/exact.md).

Costs are integers, in units of 2^-16 bits, so that every backend chooses the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import BIT, Bits, Bytes, Counts
from deltapack.kernels.reference.exact_symbols import _spread, context_bytes

__all__ = ["LEAST_GROUP", "LOGARITHMS", "context_ranges", "count_symbols", "decoding_table", "frequencies_of"]

LOGARITHMS = np.round(np.log2(1 + np.arange(4096) / 4096) * BIT).astype(np.int64)
"""log2 of 1 + i / 4096, in units of 2^-16."""
SYMBOL_COST, RANGE_COST = 9 * BIT, 40 * BIT
"""About what a symbol and a range take in the table."""
LEAST_GROUP = 24
"""Neighbours that fewer numbers have are not divided: that would not pay."""


def count_symbols(base: Bits, classes: Bytes, symbols: Bytes, numbers: Numbers, kinds: int) -> tuple[int, NDArray[np.int64]]:
    """Count symbols by class and context byte.

    Returns:
        The least context byte that occurs, and the counts from it on to the largest, and to the largest symbol: `[kinds, rows, columns]`.
    """
    own = context_bytes(base, numbers).astype(np.int64)
    first, rows, columns = int(own.min()), int(own.max() - own.min()) + 1, int(symbols.max()) + 1
    keys = (_spread(classes, len(base)).astype(np.int64) * rows + own - first) * columns + symbols
    counts: NDArray[np.int64] = np.bincount(keys, minlength=kinds * rows * columns).astype(np.int64)
    return first, counts.reshape(kinds, rows, columns)


def _weighted_logs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return v log2 v of each count, in units of 2^-16."""
    exponents = np.frexp(np.maximum(counts, 1).astype(np.float64))[1].astype(np.int64) - 1
    mantissas = (np.maximum(counts, 1) << 12 >> exponents) & 4095
    costs: NDArray[np.int64] = counts * ((exponents << 16) + LOGARITHMS[mantissas])
    return costs


def context_ranges(counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], int]:
    """Divide the context bytes into at most so many ranges, so that tables and coded symbols together are smallest.

    Neighbours that few numbers have are not divided. The rest is dynamic programming over where ranges begin.

    Args:
        counts: Of each symbol for each context byte, `[rows, columns]`.
        most: Ranges.

    Returns:
        The rows that ranges begin with, increasing, the first 0, and the cost of the symbols and tables in units of 2^-16 bits.
    """
    begins, groups = _groups(counts)
    total = len(groups)
    costs = np.full((total, total + 1), np.iinfo(np.int64).max)
    for first in range(total):
        sums = np.cumsum(groups[first:], axis=0)
        bits = _weighted_logs(sums.sum(axis=1)) - _weighted_logs(sums).sum(axis=1)
        costs[first, first + 1 :] = bits + np.count_nonzero(sums, axis=1) * SYMBOL_COST + RANGE_COST
    best, froms = [costs[0, 1:].copy()], [np.zeros(total, np.int64)]
    for ranges in range(1, min(most, total)):
        best.append(np.full(total, np.iinfo(np.int64).max))
        froms.append(np.zeros(total, np.int64))
        for last in range(ranges, total):
            candidates = best[ranges - 1][ranges - 1 : last] + costs[ranges : last + 1, last + 1]
            froms[ranges][last] = ranges + int(np.argmin(candidates))
            best[ranges][last] = candidates.min()
    ranges = int(np.argmin([row[-1] for row in best]))
    cost, last, starts = int(best[ranges][-1]), total - 1, []
    for level in range(ranges, -1, -1):
        first = int(froms[level][last])
        starts.append(int(begins[first]))
        last = first - 1
    return np.array(starts[::-1], np.int64), cost


def _groups(counts: NDArray[np.int64]) -> tuple[Counts, NDArray[np.int64]]:
    """Return where groups of context bytes begin, and their counts: each has a 2048th of all numbers and a few, but perhaps the last."""
    sizes = counts.sum(axis=1)
    least = max(LEAST_GROUP, int(sizes.sum()) >> 11)
    begins: list[int] = []
    size = least
    for byte in range(len(counts)):
        if size >= least and sizes[byte] > 0:
            begins.append(byte if begins else 0)
            size = 0
        size += int(sizes[byte])
    starts = np.array(begins or [0], np.int64)
    return starts, np.add.reduceat(counts, starts, axis=0)


def frequencies_of(counts: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
    """Scale counts of at least one symbol to frequencies `[256]` that sum to 2^precision; what occurs has 1 at least."""
    total, size = 1 << precision, int(counts.sum())
    out = np.zeros(256, np.int64)
    out[: len(counts)] = np.where(counts > 0, np.maximum(1, (counts * total + size // 2) // size), 0)
    over = int(out.sum()) - total
    while over:
        largest = int(np.argmax(out))
        step = over if over < 0 else min(over, max(1, (int(out[largest]) - 1) // 16))
        out[largest] -= step
        over -= step
    return out


def decoding_table(frequencies: NDArray[np.int64], precision: int) -> NDArray[np.uint32]:
    """Return for each context and slot: symbol, frequency less 1 (from bit 8), slot less the first of the symbol (from bit 20).

    Args:
        frequencies: `[contexts, 256]`, each row sums to 2^precision.
        precision: At most 12.

    Returns:
        `[contexts << precision]`.
    """
    every = frequencies.reshape(-1)
    symbols = np.repeat(np.tile(np.arange(256), len(frequencies)), every)
    firsts = np.repeat(np.cumsum(every) - every, every)
    return (symbols | np.repeat(every - 1, every) << 8 | (np.arange(len(symbols)) - firsts) << 20).astype(np.uint32)
