"""Stratified masks, compiled; `deltapack.kernels.reference.strata` says what the function does.

Nothing here depends on what was drawn before, so all loops vectorise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import TILE, Counts, Positions
from deltapack.kernels.reference.positions import out_array
from deltapack.kernels.reference.strata import ROUNDS, strata_of, stride_of

__all__ = ["stratified_positions"]

_AT_ONCE = 512
"""Strata, whose samples and positions stay in the first-level cache."""
_ROUNDS = ROUNDS


def stratified_positions(key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None) -> tuple[Positions, Counts]:
    """See the reference."""
    positions, counts = out_array(int(lengths.sum()), out), np.zeros(len(lengths), np.int64)
    strata = np.array([strata_of(keep, length) for length in lengths.tolist()], np.uint64)
    k0, k1 = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    kept = int(_stratify(k0, k1, np.uint64(stride_of(keep)), strata, np.uint32(first_tile), lengths, positions, counts))
    return positions[:kept].copy() if out is None else positions[:kept], counts


@compiled
def _stratify(
    k0: np.uint32,
    k1: np.uint32,
    stride: np.uint64,
    strata: NDArray[np.uint64],
    first_tile: np.uint32,
    lengths: Counts,
    positions: Positions,
    counts: Counts,
) -> np.uint64:
    """Fill in positions and counts; positions have room for all, and 256 more."""
    words, drawn, kept = np.empty(_AT_ONCE // 2, np.uint32), np.empty(_AT_ONCE, np.uint32), np.uint64(0)
    for tile in range(len(lengths)):
        before, start, end = kept, np.uint32(tile * TILE), np.uint32(lengths[tile])
        for first in range(np.uint64(0), strata[tile], np.uint64(_AT_ONCE)):
            draw_strata(k0, k1, np.uint32(first_tile + np.uint32(tile)), np.uint32(first), stride, words, drawn)
            count = min(np.uint64(_AT_ONCE), strata[tile] - first)
            for i in range(count):
                positions[kept + i] = np.uint32(drawn[i] + start)
            kept += count
        if kept > before and positions[kept - np.uint64(1)] >= start + end:
            kept -= np.uint64(1)
        counts[tile] = kept - before
    return kept


@compiled
def draw_strata(
    k0: np.uint32, k1: np.uint32, tile: np.uint32, first: np.uint32, stride: np.uint64, words: NDArray[np.uint32], drawn: Positions
) -> None:
    """Fill in what each stratum from `first` on, a multiple of 8, keeps, counted from the start of its tile; twice as many as words."""
    _philox7(k0, k1, tile, first >> np.uint32(3), words)
    # A stratum begins at (i S) >> 16 = i (S div 2^16) + ((i (S mod 2^16)) >> 16): all of it fits 32 bits, which vectorise best.
    high, low = np.uint32(stride >> np.uint64(16)), np.uint32(stride & np.uint64(0xFFFF))
    for j in range(np.uint64(len(words))):
        i = np.uint32(first + np.uint32(j + j))
        word = words[j]
        a = np.uint32(np.uint32(i * high) + np.uint32(np.uint32(i * low) >> np.uint32(16)))
        i = np.uint32(i + np.uint32(1))
        b = np.uint32(np.uint32(i * high) + np.uint32(np.uint32(i * low) >> np.uint32(16)))
        i = np.uint32(i + np.uint32(1))
        c = np.uint32(np.uint32(i * high) + np.uint32(np.uint32(i * low) >> np.uint32(16)))
        even = np.uint32(np.uint32(word & np.uint32(0xFFFF)) * np.uint32(b - a))
        odd = np.uint32(np.uint32(word >> np.uint32(16)) * np.uint32(c - b))
        drawn[j + j] = np.uint32(a + np.uint32(even >> np.uint32(16)))
        drawn[j + j + np.uint64(1)] = np.uint32(b + np.uint32(odd >> np.uint32(16)))


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
