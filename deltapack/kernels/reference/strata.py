"""Masks that keep one element of each of many short spans (spec/codecs/index.md, `stratified`)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import TILE, Counts, Positions
from deltapack.kernels.reference.positions import out_array, philox

__all__ = ["begins_of", "strata_of", "stratified_positions", "stride_of"]

ROUNDS = 7
"""Of Philox, a third less work than ten; it is the least number that passes every test of its authors (Salmon et al., SC 2011)."""


def stride_of(keep: int) -> int:
    """Return S, the elements of a stratum times 2^16."""
    return (1 << 48) // keep


def strata_of(keep: int, length: int) -> int:
    """Return how many strata begin in a tile of `length` elements: those with `(i S) >> 16 < length`."""
    return -(-(length << 16) // stride_of(keep))


@lru_cache(maxsize=16)
def begins_of(keep: int) -> NDArray[np.uint32]:
    """Return where each stratum of a full tile begins, and where the last ends, `[strata + 1]`."""
    return (np.arange(strata_of(keep, TILE) + 1, dtype=np.int64) * stride_of(keep) >> 16).astype(np.uint32)


def stratified_positions(key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None) -> tuple[Positions, Counts]:
    """Regenerate the stratified mask of a chunk.

    Args:
        key: Mask key, 64 bits.
        keep: K, the density times 2^32, in [2^16, 2^32).
        first_tile: Number of the chunk's first tile in its tensor.
        lengths: `[tiles] int64` elements of each tile.
        out: Room for `lengths.sum()` positions and 256 more.

    Returns:
        Positions and counts.
    """
    out = out_array(int(lengths.sum()), out)
    counts, kept = np.zeros(len(lengths), np.int64), 0
    for tile, length in enumerate(lengths.tolist()):
        own = _of_tile(key, keep, first_tile + tile, length)
        counts[tile] = len(own)
        out[kept : kept + len(own)] = own + np.int64(tile * TILE)
        kept += len(own)
    return out[:kept], counts


def _of_tile(key: int, keep: int, tile: int, length: int) -> NDArray[np.int64]:
    strata = strata_of(keep, length)
    blocks = np.arange(-(-strata // 8), dtype=np.uint64)
    words = philox(key, np.full(len(blocks), tile, np.uint64), blocks, third=1, rounds=ROUNDS)
    samples = words.astype("<u4").view("<u2").reshape(-1)[:strata].astype(np.int64)
    begins = begins_of(keep)[: strata + 1].astype(np.int64)
    positions: NDArray[np.int64] = begins[:-1] + (samples * np.diff(begins) >> 16)
    return positions[positions < length]
