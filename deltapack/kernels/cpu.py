"""The loops over tiles compiled by numba: the same functions as `deltapack.kernels.reference`, the same bits, several times faster.

Loops release the GIL and are cached on disk, so only the first run on a machine compiles. No fast-math: numba then neither reorders nor
fuses floating-point operations, which is what keeps the bits the same. What gains nothing is taken from the reference as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.reference import group_counts, positions_from_gaps, unpack_codes

__all__ = [
    "add_sparse",
    "group_counts",
    "positions_from_gaps",
    "sample_positions",
    "scale_codes",
    "search_steps",
    "sum_terms",
    "unpack_codes",
]

Array = NDArray[np.generic]
Positions = NDArray[np.uint32]
Counts = NDArray[np.int64]

TILE = reference.TILE
GROUP = reference.GROUP
ESCAPE = reference.ESCAPE
_BLOCKS_AT_ONCE = 64

sum_terms = reference.sum_terms


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


@lru_cache(maxsize=64)
def _gap_table(keep: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Return the thresholds, and the smallest gap of the samples that share their high 16 bits, `[65536] uint8`."""
    thresholds = reference.gap_thresholds(keep)
    starts = np.arange(1 << 16, dtype=np.uint64) << np.uint64(16)
    return thresholds, np.searchsorted(thresholds, starts, side="right").astype(np.uint8)


def sample_positions(key: int, keep: int, first_tile: int, lengths: Counts) -> tuple[Positions, Counts]:
    """See `deltapack.kernels.reference.sample_positions`."""
    thresholds, table = _gap_table(keep)
    counts = np.zeros(len(lengths), np.int64)
    positions = np.empty(int(lengths.sum()), np.uint32)
    k0, k1 = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    kept = _sample(k0, k1, thresholds, table, np.uint32(first_tile), lengths, positions, counts)
    return positions[:kept].copy(), counts


@_compiled
def _sample(
    k0: np.uint32,
    k1: np.uint32,
    thresholds: NDArray[np.uint64],
    table: NDArray[np.uint8],
    first_tile: np.uint32,
    lengths: Counts,
    positions: Positions,
    counts: Counts,
) -> int:
    samples = np.empty(4 * _BLOCKS_AT_ONCE, np.uint32)
    kept = 0
    for tile in range(len(lengths)):
        before, cursor, block = kept, np.int64(0), np.uint32(0)
        start, length = tile * TILE, lengths[tile]
        while cursor < length:
            _philox(k0, k1, np.uint32(first_tile + np.uint32(tile)), block, samples)
            block = np.uint32(block + np.uint32(_BLOCKS_AT_ONCE))
            for sample in samples:
                gap = np.int64(table[sample >> np.uint32(16)])
                while gap < ESCAPE and np.uint64(sample) >= thresholds[gap]:
                    gap += 1
                cursor += gap
                if cursor >= length:
                    break
                if gap < ESCAPE:
                    positions[kept] = np.uint32(start + cursor)
                    kept += 1
                    cursor += 1
        counts[tile] = kept - before
    return kept


@_compiled
def _philox(k0: np.uint32, k1: np.uint32, tile: np.uint32, block: np.uint32, out: NDArray[np.uint32]) -> None:
    """Fill `out` with the samples of consecutive blocks; the loop has no dependences, so it vectorises."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    blocks = len(out) // 4
    for i in range(blocks):
        c0, c1 = np.uint64(np.uint32(block + np.uint32(i))), np.uint64(tile)
        c2, c3 = np.uint64(0), np.uint64(0)
        r0, r1 = np.uint64(k0), np.uint64(k1)
        for _ in range(10):
            p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
            c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ r0, p1 & mask, (p0 >> half) ^ c3 ^ r1, p0 & mask
            r0, r1 = (r0 + np.uint64(0x9E3779B9)) & mask, (r1 + np.uint64(0xBB67AE85)) & mask
        out[4 * i] = np.uint32(c0)
        out[4 * i + 1] = np.uint32(c1)
        out[4 * i + 2] = np.uint32(c2)
        out[4 * i + 3] = np.uint32(c3)


def scale_codes(
    codes: NDArray[np.int8], scales: NDArray[np.uint16], counts: Counts, factor: np.float32
) -> NDArray[np.float32]:
    """See `deltapack.kernels.reference.scale_codes`."""
    values = np.empty(len(codes), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = (scales.astype(np.uint32) << 16).view(np.float32) * factor
    _scale(codes, steps, counts, values)
    return values


@_compiled
def _scale(codes: NDArray[np.int8], steps: NDArray[np.float32], counts: Counts, values: NDArray[np.float32]) -> None:
    position = group = 0
    for count in counts:
        end = position + count
        while position < end:
            stop, step = min(position + GROUP, end), steps[group]
            for i in range(position, stop):
                values[i] = np.float32(codes[i]) * step
            position = stop
            group += 1


def search_steps(
    integers: NDArray[np.int32],
    negative: NDArray[np.bool_],
    start: NDArray[np.uint32],
    inverse: NDArray[np.float32],
    top: int,
    mantissa_bits: int,
    candidates: int,
) -> NDArray[np.uint32]:
    """See `deltapack.kernels.reference.search_steps`."""
    # A negative scale negates the codes; negating the integers instead gives the same errors.
    best = start.copy()
    offsets = np.arange(candidates, dtype=np.uint32) << np.uint32(23 - mantissa_bits)
    _search(integers, negative, start, inverse, np.int32(top), offsets, best)
    return best


@_compiled
def _search(
    integers: NDArray[np.int32],
    negative: NDArray[np.bool_],
    start: NDArray[np.uint32],
    inverse: NDArray[np.float32],
    top: np.int32,
    offsets: NDArray[np.uint32],
    best: NDArray[np.uint32],
) -> None:
    wide = np.empty(1, np.uint32)
    value = wide.view(np.float32)
    exact = np.empty(GROUP, np.float32)
    for group in range(len(integers)):
        sign = np.int32(-1) if negative[group] else np.int32(1)
        for i in range(GROUP):
            exact[i] = np.float32(integers[group, i] * sign)
        least = np.int64(0x7FFFFFFFFFFFFFFF)
        low, high = np.float32(-top), np.float32(top - 1)
        for offset in offsets:
            wide[0] = start[group] - offset if start[group] > offset else start[group]
            step = max(np.float32(np.rint(value[0] * inverse[group])), np.float32(1))
            reciprocal = np.float32(1) / step
            whole = np.int32(step)
            error = np.int64(0)
            for i in range(GROUP):
                code = min(max(np.rint(exact[i] * reciprocal), low), high)
                miss = np.int32(exact[i]) - np.int32(code) * whole
                error += np.int64(miss) * np.int64(miss)
            if error < least:
                least = error
                best[group] = wide[0]


def add_sparse(
    base: Array, source: DType, target: DType, positions: Positions, total: NDArray[np.float32]
) -> Array:
    """See `deltapack.kernels.reference.add_sparse`."""
    if source != target or source.name not in ("bf16", "f32") or len(positions) == 0:
        return reference.add_sparse(base, source, target, positions, total)
    out = base.copy()
    if source.name == "bf16":
        _add_bf16(out, positions, total)
    else:
        _add_f32(out, positions, total)
    return out


@_compiled
def _add_bf16(out: NDArray[np.uint16], positions: Positions, total: NDArray[np.float32]) -> None:
    wide = np.empty(1, np.uint32)
    value = wide.view(np.float32)
    for i in range(len(positions)):
        position = positions[i]
        wide[0] = np.uint32(out[position]) << np.uint32(16)
        value[0] = value[0] + total[i]
        bits = wide[0]
        if value[0] != value[0]:
            out[position] = np.uint16(0x7FC0)
        else:
            out[position] = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_compiled
def _add_f32(out: NDArray[np.float32], positions: Positions, total: NDArray[np.float32]) -> None:
    for i in range(len(positions)):
        result = out[positions[i]] + total[i]
        out[positions[i]] = result if result == result else np.float32(np.nan)
