"""DARE: drop a fraction of the delta at random, rescale the rest (Yu et al., ICML 2024, arXiv 2311.03099).

The mask of a tensor is a function of its 64-bit key and the density alone (spec/codecs/index.md, `seeded`), so it costs no
bytes. Keys differ between packs: if two packs dropped the same elements, merging them would gain nothing from DARE.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.indices import masked_positions
from deltapack.errors import RecipeError
from deltapack.format.table import tile_lengths

__all__ = ["ALL_KEPT", "HOPELESS", "RISKY", "keep_of_drop_rate", "mask_key", "rescale_factor", "select"]

ALL_KEPT = 1 << 32
RISKY = 0.005
HOPELESS = 0.03
"""Magnitudes of differences, from the paper: within 0.005 a rate of 0.9 is safe, near 0.03 DARE fails."""


def keep_of_drop_rate(drop_rate: float) -> int:
    """Return K = density * 2^32, where density = 1 - drop_rate; 2^32 means that nothing is dropped.

    >>> keep_of_drop_rate(0.75) == 1 << 30
    True

    Raises:
        RecipeError: `drop_rate` is not in [0, 1).
    """
    if not 0 <= drop_rate < 1:
        hint = f"To drop {drop_rate:g} %, write {drop_rate / 100:g}." if 1 < drop_rate < 100 else None
        raise RecipeError("drop_rate is out of range", expected="0 <= drop_rate < 1", found=drop_rate, hint=hint)
    return max(1, round((1 - drop_rate) * ALL_KEPT))


def rescale_factor(keep: int) -> float:
    """Return 1 / (1 - drop_rate) as an f32, which keeps the expected delta unchanged."""
    return float(np.float32(ALL_KEPT / keep))


def mask_key(seed: int, identity: str, tensor: str) -> int:
    """Return the 64-bit key of a tensor's mask.

    Args:
        seed: The user's seed.
        identity: What tells this fine-tune from others; see `deltapack.packing.compressing`.
        tensor: Name of the tensor.
    """
    text = f"deltapack mask\0{seed}\0{identity}\0{tensor}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def select(
    keep: int, key: int, chunk: int, length: int, out: NDArray[np.uint32] | None = None, index: str = "seeded"
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the kept positions of a chunk, `[nnz] uint32`, and the kept count of each tile, `[tiles] int64`.

    Args:
        keep: Density times 2^32; `ALL_KEPT` keeps everything.
        key: Mask key.
        chunk: Number of the chunk in its tensor.
        length: Elements of the chunk.
        out: Room for the chunk's elements and 256 more; the positions are then a view of it.
        index: The index codec of the term; the mask is that of `stratified` where this is it, and else that of `seeded`.
    """
    lengths = np.array(tile_lengths(length), np.int64)
    if keep == ALL_KEPT:
        return np.arange(length, dtype=np.uint32), lengths
    return masked_positions(index if index == "stratified" else "seeded", key, keep, chunk, lengths, out)
