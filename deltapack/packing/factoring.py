"""Factors in codes of few bits, of the first singular directions of a difference."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.factors import Factors
from deltapack.packing.directions import Directions

__all__ = ["faithful_factors", "quantise_factors"]

F32 = NDArray[np.float32]

_STEPS = {2: 0.498, 4: 0.1676, 8: 0.0154}
"""Half of the distance between levels that leaves least of a Gaussian column, in its root mean squares, by bits of a code."""
_OCTAVE = 4
"""Scales that are tried in an octave."""
_LARGEST = 32
"""How many such steps a scale is raised at most."""
_FAITHFUL = 0.65
"""Of Gaussian columns, codes of two bits reach 0.78, and 1/2 would leave as large a difference as there was."""
_SLIGHT, _OF_REST = 0.02, 0.25
"""What codes may leave of a difference: this share of its power, or this share of what the directions leave, whichever is more."""


def faithful_factors(directions: Directions, energy: float, bits: int, most: float) -> Factors | None:
    """Return factors as below, in codes of more bits where few would leave too much and these leave less; `None` where no bits are enough.

    Codes have no 0. Where a few elements make up a direction, each of the others gets the smallest code, and together these may be far
    larger than what is coded: the gain would make it worse. So a direction counts by the squared cosines to its codes, and those from the
    first that no bits suffice for are left out.

    Args:
        directions: The directions.
        energy: Sum of squares of the difference.
        bits: Bits of a code, at least.
        most: Bits for all codes, but for those of one direction, where codes have to be wider.
    """
    powers = np.square(directions.values) / energy if energy > 0 else np.zeros(len(directions.values))
    allowed = max(_SLIGHT, _OF_REST * (1 - float(powers.sum())))
    best, least = None, float(powers.sum())
    for width in (width for width in _STEPS if width >= bits):
        rank = len(powers)
        if width > bits:
            rank = max(1, min(rank, int(most / (width * (directions.left.shape[1] + directions.right.shape[1])))))
        coded = _coded(directions, rank, width)
        cosines = np.array([left.cosine * right.cosine for left, right in zip(*coded, strict=True)])
        rank = int(np.argmin(np.append(cosines >= _FAITHFUL, False)))
        lost = float((powers[:rank] * (1 / cosines[:rank] - 1)).sum() + powers[rank:].sum())
        if rank and lost < least:
            best, least = _factors(coded, rank, width), lost
        if lost <= allowed:
            break
    return best


def quantise_factors(directions: Directions, rank: int, bits: int) -> Factors:
    """Return factors of the first singular directions, each with half of its singular value's root, in codes of few bits.

    A column's scale is the one next to which no other has a code that points better in its direction; what is stored is that which gives
    the code the projection gain: its scalar product with the column is the column's with itself.

    Args:
        directions: The directions.
        rank: How many, at most; at least one must be there.
        bits: Bits of a code: 2, 4 or 8.
    """
    return _factors(_coded(directions, rank, bits), rank, bits)


class _Column(NamedTuple):
    """A column of a factor in codes: these, their scale, and the square of the cosine between both."""

    codes: NDArray[np.int8]
    scale: float
    cosine: float


def _coded(directions: Directions, rank: int, bits: int) -> list[list[_Column]]:
    """Return the columns of the left and of the right factor."""
    roots = np.sqrt(directions.values[:rank]).astype(np.float32)[:, None]
    return [[_quantised(column, bits) for column in side[:rank] * roots] for side in (directions.left, directions.right)]


def _factors(coded: list[list[_Column]], rank: int, bits: int) -> Factors:
    left, right = (np.stack([column.codes for column in columns[:rank]]) for columns in coded)
    return Factors.of_codes(left, right, np.array([[column.scale for column in columns[:rank]] for columns in coded], np.float32), bits)


def _quantised(column: F32, bits: int) -> _Column:
    """Return a column in codes."""
    power = _product(column, column)
    if not power > 0:
        return _Column(np.zeros(len(column), np.int8), 0.0, 0.0)
    usual = math.sqrt(power / len(column)) * _STEPS[bits]

    def fit(octaves: int) -> float:
        levels = 2.0 * _codes(column, usual * 2.0 ** (octaves / _OCTAVE), bits) + 1
        return _product(column, levels) ** 2 / _product(levels, levels)

    best, found = 0, fit(0)
    while best < _LARGEST and (other := fit(best + 1)) >= found:  # where few elements are large, some steps change no code
        best, found = best + 1, other
    while (other := fit(best - 1)) > found:
        best, found = best - 1, other
    codes = _codes(column, usual * 2.0 ** (best / _OCTAVE), bits)
    levels = 2.0 * codes + 1
    scale = power / _product(column, levels)
    return _Column(codes, scale, power / (scale * scale * _product(levels, levels)))


def _codes(column: F32, step: float, bits: int) -> NDArray[np.int8]:
    top = 1 << bits - 1
    codes: NDArray[np.int8] = np.clip(np.floor(column / np.float32(2 * step)), -top, top - 1).astype(np.int8)
    return codes


def _product(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return a scalar product in f64, by sums in 64 lanes, so that it is the same on every machine."""
    products = np.zeros(-(-len(one) // 64) * 64)
    np.multiply(one, other, out=products[: len(one)], dtype=np.float64)
    return math.fsum(np.add.reduce(products.reshape(-1, 64), axis=0).tolist())
