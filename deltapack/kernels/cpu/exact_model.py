"""Which numbers share a table and what is in it, compiled; `deltapack.kernels.reference.exact_model` says what each function does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import EXACT_BLOCK, Bits, Bytes
from deltapack.kernels.reference.exact_model import LOGARITHMS, RANGE_COST, SYMBOL_COST

__all__ = ["context_ranges", "count_symbols", "decoding_table", "frequencies_of"]

_HUGE = np.iinfo(np.int64).max


def count_symbols(base: Bits, classes: Bytes, symbols: Bytes, numbers: Numbers, kinds: int) -> NDArray[np.int64]:
    """See the reference."""
    out = np.zeros((2 if len(base) > 1 << 17 else 1, kinds << 16), np.uint32)
    _count(base, classes, symbols, np.uint64(numbers.shift), np.uint64(numbers.mask), out)
    both: NDArray[np.int64] = out.sum(axis=0, dtype=np.int64)
    return both.reshape(kinds, 256, 256)


@compiled
def _count(base: Bits, classes: Bytes, symbols: Bytes, shift: np.uint64, mask: np.uint64, out: NDArray[np.uint32]) -> None:
    """Count in two tables in turns, so that equal neighbours need not wait for each other; in one where adding them takes longer."""
    other = len(out) - 1
    n, block, size = np.uint64(len(base)), np.uint64(0), np.uint64(EXACT_BLOCK)
    while block * size < n:
        kind = np.uint64(classes[block]) << np.uint64(16)
        i, end = block * size, min(n, (block + np.uint64(1)) * size)
        while i + np.uint64(1) < end:
            out[0, kind | (((np.uint64(base[i]) >> shift) & mask) << np.uint64(8)) | np.uint64(symbols[i])] += np.uint32(1)
            i += np.uint64(1)
            out[other, kind | (((np.uint64(base[i]) >> shift) & mask) << np.uint64(8)) | np.uint64(symbols[i])] += np.uint32(1)
            i += np.uint64(1)
        if i < end:
            out[0, kind | (((np.uint64(base[i]) >> shift) & mask) << np.uint64(8)) | np.uint64(symbols[i])] += np.uint32(1)
        block += np.uint64(1)


def context_ranges(counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], int]:
    """See the reference."""
    begins, groups = np.zeros(256, np.int64), np.zeros((256, 256), np.int64)
    total, top = _groups(counts, begins, groups)
    starts = np.zeros(most, np.int64)
    ranges, cost = _ranges(groups[:total, :top], np.int64(most), LOGARITHMS, starts)
    return begins[starts[:ranges]], int(cost)


@compiled
def _groups(counts: NDArray[np.int64], begins: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many groups of context bytes there are, and one more than the largest symbol."""
    least = max(1, counts.sum() >> 11)
    total, size, top = 0, least, 1
    for byte in range(256):
        own = counts[byte].sum()
        if size >= least and own > 0:
            begins[total] = byte if total else 0
            total += 1
            size = 0
        size += own
        if own > 0:
            for symbol in range(256):
                if counts[byte, symbol]:
                    groups[total - 1, symbol] += counts[byte, symbol]
                    top = max(top, symbol + 1)
    return max(1, total), top


@compiled
def _weighted_log(count: np.int64, logarithms: NDArray[np.int64]) -> np.int64:
    if count < 2:
        return np.int64(0)
    exponent = 0
    while count >> (exponent + 1):
        exponent += 1
    return np.int64(count * ((exponent << 16) + logarithms[((count << 12) >> exponent) & 4095]))


@compiled
def _ranges(
    groups: NDArray[np.int64], most: np.int64, logarithms: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[np.int64, np.int64]:
    """Fill in the groups that ranges begin with; returns how many ranges there are, and what they cost."""
    total, top = groups.shape
    costs, sums = np.zeros((total, total), np.int64), np.zeros(top, np.int64)
    for first in range(total):
        sums[:] = 0
        for last in range(first, total):
            size, used, bits = np.int64(0), np.int64(0), np.int64(0)
            for symbol in range(top):
                sums[symbol] += groups[last, symbol]
                if sums[symbol]:
                    size += sums[symbol]
                    used += 1
                    bits += _weighted_log(sums[symbol], logarithms)
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
    for symbol in range(256):
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
