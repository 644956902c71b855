"""How the differences of several packs relate: side by side, what several changed, scalar products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import Positions, Sparse, Values

__all__ = ["LANES", "count_shared", "scalar_products", "stack_terms", "sum_of_squares"]

LANES = 8
"""Sums that `sum_of_squares` runs side by side."""


def stack_terms(length: int, parts: Sequence[Sparse]) -> tuple[Positions, Values]:
    """Lay sparse differences side by side.

    Args:
        length: Elements of the piece.
        parts: Positions and values of each pack.

    Returns:
        Positions `[union]` that any pack keeps, and the values there, `[packs, union] f32`, +0.0 where a pack keeps nothing.
    """
    kept = np.zeros(length, np.bool_)
    for positions, _ in parts:
        kept[positions] = True
    union = np.flatnonzero(kept)
    place = np.cumsum(kept, dtype=np.int64) - 1
    deltas = np.zeros((len(parts), len(union)), np.float32)
    for row, (positions, values) in zip(deltas, parts, strict=True):
        row[place[positions]] = values
    return union.astype(np.uint32), deltas


def count_shared(length: int, parts: Sequence[Sparse], epsilon: float) -> NDArray[np.int64]:
    """Return `[2, packs]` how many elements each pack changes by more than `epsilon` as others do, and how many it alone does."""
    changed = [positions[np.abs(values) > np.float32(epsilon)] for positions, values in parts]
    count = np.zeros(length, np.int64)
    for positions in changed:
        count[positions] += 1
    shared = [np.count_nonzero(count[positions] > 1) for positions in changed]
    return np.array([shared, [len(positions) - several for positions, several in zip(changed, shared, strict=True)]])


def scalar_products(length: int, parts: Sequence[Sparse]) -> NDArray[np.float64]:
    """Return `[packs, packs]` sums of the products of what two packs keep, first to last in f64 from +0.0; each product is exact."""
    out = np.zeros((len(parts), len(parts)))
    place = np.zeros(length, np.int64)
    for i, (positions, values) in enumerate(parts):
        place[:] = -1
        place[positions] = np.arange(len(positions))
        for j, (others, factors) in enumerate(parts):
            found = place[others]
            with np.errstate(invalid="ignore"):
                products = values[found[found >= 0]].astype(np.float64) * factors[found >= 0]
                out[i, j] = float(np.add.accumulate(products)[-1]) + 0.0 if len(products) else 0.0
    return out


def sum_of_squares(values: Values) -> float:
    """Return the sum of squares of `[n] f32` in f64: eight sums, each of every eighth square in order, then added in order."""
    rows = np.zeros((-(-len(values) // LANES) + 1, LANES))
    rows.reshape(-1)[: len(values)] = np.square(values, dtype=np.float64)
    lanes: list[float] = np.add.accumulate(rows)[-1].tolist()
    return reduce(add, lanes, 0.0)  # not `sum`, which corrects its rounding from Python 3.12 on
