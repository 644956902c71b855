"""Which elements are kept by their magnitude or by chance: histograms, cuts, ranks, and a random number for each element."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import TILE, Counts, Values
from deltapack.kernels.reference.positions import philox

__all__ = [
    "HIGH",
    "LOW",
    "MAGNITUDE",
    "element_samples",
    "histogram_high",
    "histogram_low",
    "magnitude_bits",
    "places_below",
    "places_between",
    "row_ranks",
]

HIGH, LOW = 1 << 15, 1 << 16
"""How many values the high and the low bits of a magnitude have."""
MAGNITUDE = (1 << 31) - 1
"""The bits of an f32 without its sign; those of non-negative values have the order of the values."""


def magnitude_bits(values: Values) -> NDArray[np.uint32]:
    """Return the bits of the magnitudes, whose order is that of the magnitudes."""
    return np.ascontiguousarray(values).view(np.uint32) & np.uint32(MAGNITUDE)


def histogram_high(values: Values) -> Counts:
    """Return `[HIGH]` how many values have each value of the high 15 bits of their magnitude; zeros are not counted."""
    bits = magnitude_bits(values)
    return np.bincount(bits[bits != 0] >> np.uint32(16), minlength=HIGH)


def histogram_low(values: Values, high: int) -> Counts:
    """Return `[LOW]` how many of the values with these high bits have each value of the low 16 bits."""
    bits = magnitude_bits(values)
    return np.bincount(bits[bits >> np.uint32(16) == high] & np.uint32(LOW - 1), minlength=LOW)


def places_between(values: Values, least: int, least_ties: int, most: int, most_ties: int) -> NDArray[np.uint32]:
    """Return the places of values above one cut and not above another, increasing.

    Args:
        values: `[n] f32`.
        least: Bits of a magnitude.
        least_ties: How many of the values equal to `least`, the first ones, count as above it.
        most: Bits of a magnitude.
        most_ties: The same for `most`.
    """
    bits = magnitude_bits(values)
    return np.flatnonzero(_above(bits, least, least_ties) & ~_above(bits, most, most_ties)).astype(np.uint32)


def _above(bits: NDArray[np.uint32], cut: int, ties: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = bits > cut
    if ties:
        mask[np.flatnonzero(bits == cut)[:ties]] = True
    return mask


def row_ranks(values: Values) -> NDArray[np.uint32]:
    """Return the rank of each magnitude within its row, from 0, for `[rows, n]`; of equal ones the first is smaller."""
    order = np.argsort(magnitude_bits(values), axis=1, kind="stable")
    ranks = np.empty(values.shape, np.uint32)
    np.put_along_axis(ranks, order, np.arange(values.shape[1], dtype=np.uint32)[None], axis=1)
    return ranks


def places_below(samples: NDArray[np.uint32], ranks: NDArray[np.uint32], limits: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return the places of the samples `[n]` that are below the limit of their rank `[n]`; limits by rank."""
    return np.flatnonzero(samples < limits[ranks]).astype(np.uint32)


def element_samples(key: int, first_tile: int, length: int) -> NDArray[np.uint32]:
    """Return a random number of 32 bits for each element of a chunk, `[length]`, from a key alone.

    Philox4x32-10 with counter (element in its tile / 4, tile, 0, 0), as in spec/codecs/index.md.

    Args:
        key: 64 bits.
        first_tile: Number of the chunk's first tile in its tensor.
        length: Elements of the chunk.
    """
    tiles, blocks = -(-length // TILE), min(TILE, length + 3) // 4
    numbers = philox(key, np.arange(first_tile, first_tile + tiles, dtype=np.uint64)[:, None], np.arange(blocks, dtype=np.uint64)[None])
    return numbers.reshape(-1)[:length].astype(np.uint32)
