"""Which numbers share a table and what is in it, compiled; `deltapack.kernels.reference.exact_model` says what each function does."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled, leading_zeros
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import EXACT_BLOCK, Bits, Bytes
from deltapack.kernels.reference.exact_model import LEAST_GROUP, LOGARITHMS, RANGE_COST, SYMBOL_COST

__all__ = ["context_ranges", "count_symbols", "decoding_table", "frequencies_of"]

_BLOCK = np.uint64(EXACT_BLOCK)
_WAYS, _MANY = 4, 1 << 15
_HUGE = np.iinfo(np.int64).max


def count_symbols(base: Bits, classes: Bytes, symbols: Bytes, numbers: Numbers, kinds: int) -> tuple[int, NDArray[np.int64]]:
    """See the reference."""
    shift, mask = np.uint64(numbers.shift), np.uint64(numbers.mask)
    first, last = 0, 0
    if numbers.mask:
        kind = np.dtype(numbers.storage).type
        first, last = (int(field) >> numbers.shift for field in _span(numbers.width)(base, kind(numbers.mask << numbers.shift)))
    out = np.zeros((_WAYS if len(base) > _MANY else 1, kinds, last - first + 1, int(symbols.max()) + 1), np.uint32)
    _count(base, classes, symbols, shift, mask, np.uint64(first), out)
    return first, out.sum(axis=0, dtype=np.int64) if len(out) > 1 else out[0].astype(np.int64)


@lru_cache
def _span(width: int) -> Any:
    """Return a loop over numbers of a width that finds their least and their largest field, in arithmetic of that width."""
    U: Any = {64: np.uint64, 32: np.uint32, 16: np.uint16, 8: np.uint8}[width]
    full = U((1 << width) - 1)

    def span(base: Any, field: Any) -> Any:
        least, most = full, U(0)
        for i in range(np.uint64(len(base))):
            own = U(U(base[i]) & field)
            least, most = min(least, own), max(most, own)
        return least, most

    return compiled(span)


@compiled
def _count(
    base: Bits, classes: Bytes, symbols: Bytes, shift: np.uint64, mask: np.uint64, first: np.uint64, out: NDArray[np.uint32]
) -> None:
    """Count in several tables in turns, so that equal neighbours need not wait for each other; in one where adding them takes longer."""
    rows, columns, one = np.uint64(out.shape[2]), np.uint64(out.shape[3]), np.uint64(1)
    step, cells, keys = np.uint64(out.shape[1]) * rows * columns, out.reshape(-1), np.empty(EXACT_BLOCK, np.uint32)
    n, block, wide, least = np.uint64(len(base)), np.uint64(0), np.uint32(columns), np.uint32(first)
    b = step if len(out) > 1 else np.uint64(0)
    c, d = b + b, b + b + b
    while block * _BLOCK < n:
        start, kind = block * _BLOCK, np.uint32(np.uint32(classes[block]) * np.uint32(rows))
        size, i = min(_BLOCK, n - start), np.uint64(0)
        for j in range(size):
            row = np.uint32(np.uint32(np.uint32((np.uint64(base[start + j]) >> shift) & mask) - least) + kind)
            keys[j] = np.uint32(np.uint32(row * wide) + np.uint32(symbols[start + j]))
        while i + np.uint64(3) < size:
            cells[np.uint64(keys[i])] += np.uint32(1)
            cells[b + np.uint64(keys[i + one])] += np.uint32(1)
            cells[c + np.uint64(keys[i + np.uint64(2)])] += np.uint32(1)
            cells[d + np.uint64(keys[i + np.uint64(3)])] += np.uint32(1)
            i += np.uint64(4)
        while i < size:
            cells[np.uint64(keys[i])] += np.uint32(1)
            i += one
        block += one


def context_ranges(counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], int]:
    """See the reference."""
    begins, groups = np.zeros(len(counts), np.int64), np.zeros(counts.shape, np.int64)
    total = _groups(counts, np.int64(LEAST_GROUP), begins, groups)
    starts = np.zeros(most, np.int64)
    ranges, cost = _ranges(groups[:total], np.int64(most), LOGARITHMS, starts)
    return begins[starts[:ranges]], int(cost)


@compiled
def _groups(counts: NDArray[np.int64], fewest: np.int64, begins: NDArray[np.int64], groups: NDArray[np.int64]) -> int:
    """Return how many groups of context bytes there are."""
    least = max(fewest, counts.sum() >> 11)
    total, size = 0, least
    for byte in range(len(counts)):
        own = counts[byte].sum()
        if size >= least and own > 0:
            begins[total] = byte if total else 0
            total += 1
            size = 0
        size += own
        if own > 0:
            groups[total - 1] += counts[byte]
    return max(1, total)


@compiled
def _weighted_log(count: np.int64, logarithms: NDArray[np.int64]) -> np.int64:
    if count < 2:
        return np.int64(0)
    exponent = np.int64(63) - np.int64(leading_zeros(np.uint64(count)))
    return np.int64(count * ((exponent << 16) + logarithms[((count << 12) >> exponent) & 4095]))


@compiled
def _ranges(
    groups: NDArray[np.int64], most: np.int64, logarithms: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[np.int64, np.int64]:
    """Fill in the groups that ranges begin with; returns how many ranges there are, and what they cost."""
    total, top = groups.shape
    costs, sums, logs = np.zeros((total, total), np.int64), np.zeros(top, np.int64), np.zeros(top, np.int64)
    for first in range(total):
        sums[:] = 0
        logs[:] = 0
        size, used, bits = np.int64(0), np.int64(0), np.int64(0)
        for last in range(first, total):
            for symbol in range(top):
                more = groups[last, symbol]
                if more:
                    used += sums[symbol] == 0
                    sums[symbol] += more
                    size += more
                    now = _weighted_log(sums[symbol], logarithms)
                    bits += now - logs[symbol]
                    logs[symbol] = now
            costs[first, last] = _weighted_log(size, logarithms) - bits + used * SYMBOL_COST + RANGE_COST
    levels = min(most, total)
    best, froms = np.full((levels, total), _HUGE), np.zeros((levels, total), np.int64)
    best[0] = costs[0]
    chosen = 0
    for level in range(1, levels):
        for last in range(level, total):
            for first in range(level, last + 1):
                cost = best[level - 1, first - 1] + costs[first, last]
                if cost < best[level, last]:
                    best[level, last] = cost
                    froms[level, last] = first
        if best[level, total - 1] < best[chosen, total - 1]:
            chosen = level
    last = total - 1
    for level in range(chosen, -1, -1):
        starts[level] = froms[level, last]
        last = froms[level, last] - 1
    return np.int64(chosen + 1), best[chosen, total - 1]


def frequencies_of(counts: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
    """See the reference."""
    out = np.zeros(256, np.int64)
    _scale(counts, np.int64(1 << precision), out)
    return out


@compiled
def _scale(counts: NDArray[np.int64], total: np.int64, out: NDArray[np.int64]) -> None:
    size, over = counts.sum(), -total
    for symbol in range(len(counts)):
        if counts[symbol] > 0:
            out[symbol] = max(1, (counts[symbol] * total + size // 2) // size)
            over += out[symbol]
    while over != 0:
        largest = np.argmax(out)
        step = over if over < 0 else min(over, max(1, (out[largest] - 1) // 16))
        out[largest] -= step
        over -= step


def decoding_table(frequencies: NDArray[np.int64], precision: int) -> NDArray[np.uint32]:
    """See the reference."""
    out = np.empty(len(frequencies) << precision, np.uint32)
    _fill(frequencies, out)
    return out


@compiled
def _fill(frequencies: NDArray[np.int64], out: NDArray[np.uint32]) -> None:
    at = np.uint64(0)
    for row in range(len(frequencies)):
        for symbol in range(256):
            frequency = np.uint32(frequencies[row, symbol])
            entry = np.uint32(symbol) | np.uint32((frequency - np.uint32(1)) << np.uint32(8))
            for slot in range(frequency):
                out[at] = entry | np.uint32(np.uint32(slot) << np.uint32(20))
                at += np.uint64(1)
