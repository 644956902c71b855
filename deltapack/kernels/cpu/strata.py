"""Stratified masks, compiled; `deltapack.kernels.reference.strata` says what the function does.

Nothing here depends on what was drawn before, so all loops vectorise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import TILE, Counts, Positions
from deltapack.kernels.reference.positions import out_array
from deltapack.kernels.reference.strata import ROUNDS, begins_of

__all__ = ["stratified_positions"]

_AT_ONCE = 512
"""Strata, whose samples and positions stay in the first-level cache."""
_ROUNDS = ROUNDS


def stratified_positions(key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None) -> tuple[Positions, Counts]:
    """See the reference."""
    positions, counts = out_array(int(lengths.sum()), out), np.zeros(len(lengths), np.int64)
    k0, k1 = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    kept = int(_stratify(k0, k1, begins_of(keep), np.uint32(first_tile), lengths, positions, counts))
    return positions[:kept].copy() if out is None else positions[:kept], counts


@compiled
def _stratify(
    k0: np.uint32,
    k1: np.uint32,
    begins: NDArray[np.uint32],
    first_tile: np.uint32,
    lengths: Counts,
    positions: Positions,
    counts: Counts,
) -> np.uint64:
    """Fill in positions and counts; positions have room for all, and 256 more. Strata begin alike in each tile, so this is a table."""
    words, kept, one = np.empty(_AT_ONCE // 2, np.uint32), np.uint64(0), np.uint64(1)
    samples = words.view(np.uint16)
    for tile in range(len(lengths)):
        before, start, end = kept, np.uint32(tile * TILE), np.uint32(lengths[tile])
        strata = np.uint64(np.searchsorted(begins[: len(begins) - 1], end))
        for first in range(np.uint64(0), strata, np.uint64(_AT_ONCE)):
            _philox7(k0, k1, np.uint32(first_tile + np.uint32(tile)), np.uint32(first >> np.uint64(3)), words)
            for i in range(min(np.uint64(_AT_ONCE), strata - first)):
                begin = begins[first + i]
                width = np.uint32(begins[first + i + one] - begin)
                within = np.uint32(np.uint32(np.uint32(samples[i]) * width) >> np.uint32(16))
                positions[kept + i] = np.uint32(np.uint32(begin + start) + within)
            kept += min(np.uint64(_AT_ONCE), strata - first)
        if kept > before and positions[kept - one] >= start + end:
            kept -= one
        counts[tile] = kept - before
    return kept


@compiled
def _philox7(k0: np.uint32, k1: np.uint32, tile: np.uint32, block: np.uint32, out: NDArray[np.uint32]) -> None:
    """Fill `out` with the samples of consecutive blocks, of counters whose third word is 1."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(len(out) // 4):
        c0, c1 = np.uint64(np.uint32(block + np.uint32(i))), np.uint64(tile)
        c2, c3 = np.uint64(1), np.uint64(0)
        r0, r1 = np.uint64(k0), np.uint64(k1)
        for _ in range(_ROUNDS):
            p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
            c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ r0, p1 & mask, (p0 >> half) ^ c3 ^ r1, p0 & mask
            r0, r1 = (r0 + np.uint64(0x9E3779B9)) & mask, (r1 + np.uint64(0xBB67AE85)) & mask
        out[4 * i] = np.uint32(c0)
        out[4 * i + 1] = np.uint32(c1)
        out[4 * i + 2] = np.uint32(c2)
        out[4 * i + 3] = np.uint32(c3)
