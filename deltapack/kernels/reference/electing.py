"""The differences of several packs side by side, sums of those that agree with an elected sign, scalar products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["add_in_order", "blend_elected", "mix_shared", "scalar_product", "stack_terms"]

Positions = NDArray[np.uint32]
Values = NDArray[np.float32]


def stack_terms(length: int, parts: Sequence[tuple[Positions, Values]]) -> tuple[Positions, Values]:
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


def blend_elected(
    length: int,
    parts: Sequence[tuple[Positions, Values]],
    voices: Values,
    shares: Values,
    measures: Values,
    zero_is_positive: bool,
    divided: bool,
    floor: np.float32,
    scale: np.float32,
) -> tuple[Positions, Values]:
    """Elect a sign for each element, add up what agrees with it, divide and scale.

        sum    = sum of voice_k * delta_k;  elected: + where it is above 0, - where it is below, by `zero_is_positive` where it is 0
        M_k    = [voice_k * delta_k has the elected sign]                                zeros never have it
        result = scale * sum of (delta_k * share_k) M_k / sum of measure_k M_k

    Sums run in f32 in pack order from +0.0.

    Args:
        length: Elements of the piece.
        parts: Positions and values of each pack; a pack that does not keep an element has +0.0 there.
        voices: `[packs] f32` weights in the election.
        shares: `[packs] f32` weights in the result.
        measures: `[packs] f32` what each pack adds to the divisor.
        zero_is_positive: The sign where the sum is zero.
        divided: Whether the sum is divided by the sum of the measures.
        floor: The least divisor; where it is 0, a divisor of 0 counts as 1.
        scale: What the result is multiplied with.

    Returns:
        Positions `[union]` that any pack keeps and the results there, `[union] f32`, never -0.0.
    """
    positions, deltas = stack_terms(length, parts)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        voted = deltas * voices[:, None]
        total = add_in_order(voted)
        agree = np.where(total >= 0 if zero_is_positive else total > 0, voted > 0, voted < 0)
        mixed = add_in_order(np.where(agree, deltas * shares[:, None], np.float32(0)))
        divisor = add_in_order(np.where(agree, measures[:, None], np.float32(0)))
        if divided:
            mixed = np.divide(mixed, np.maximum(divisor, floor) if floor > 0 else np.where(divisor == 0, np.float32(1), divisor))
        return positions, mixed * scale + np.float32(0)


def mix_shared(deltas: Values, epsilon: np.float32, alone: Values) -> Values:
    """Return what one pack changed, scaled, and the mean of what several changed, `[union] f32`.

    Args:
        deltas: `[packs, union] f32`.
        epsilon: A difference of this magnitude or less is no change.
        alone: `[packs] f32` factors of what only one pack changed.
    """
    kept = np.abs(deltas) > epsilon
    count = kept.sum(axis=0)
    parts = np.where(count == 1, deltas * alone[:, None], deltas / np.maximum(count, 1).astype(np.float32))
    return add_in_order(np.where(kept, parts, np.float32(0)))


def scalar_product(one: Values, other: Values) -> float:
    """Return the sum of the products of `[n] f32` and `[n] f32`, in f64, first to last from +0.0; each product is exact."""
    with np.errstate(invalid="ignore"):
        products = one.astype(np.float64) * other
        return float(np.add.accumulate(products)[-1]) + 0.0 if len(products) else 0.0


def add_in_order(rows: Values) -> Values:
    """Return the sum of rows `[packs, union]`, first to last, in f32 from +0.0."""
    total = np.zeros(rows.shape[1], np.float32)
    for row in rows:
        total = total + row
    return total
