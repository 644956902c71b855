"""Formulas over the differences of several packs (`deltapack.kernels.formulas`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltapack.dtypes import DType
from deltapack.kernels.formulas import Election, Formula, Sharing, WeightedSum
from deltapack.kernels.layout import Elements, Sparse, Values
from deltapack.kernels.reference.adding import add_in_place, sum_terms
from deltapack.kernels.reference.relating import stack_terms

__all__ = ["add_blended", "blend", "scaled"]


def blend(length: int, parts: Sequence[Sparse], formula: Formula) -> Sparse:
    """Compute a formula.

    Args:
        length: Elements of the piece.
        parts: Positions and values of each pack; at least one.
        formula: What to compute.

    Returns:
        Positions `[union]` that any pack keeps and the results there, `[union] f32`, never -0.0.
    """
    if isinstance(formula, WeightedSum):
        return sum_terms(length, scaled(parts, formula))
    positions, deltas = stack_terms(length, parts)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return Sparse(positions, _elected(deltas, formula) if isinstance(formula, Election) else _shared(deltas, formula))


def add_blended(elements: Elements, dtype: DType, parts: Sequence[Sparse], formula: Formula) -> None:
    """Compute a formula and add the results to elements in place, as `add_in_place` does."""
    add_in_place(elements, dtype, [blend(len(elements), parts, formula)])


def scaled(parts: Sequence[Sparse], formula: WeightedSum) -> list[Sparse]:
    """Return the parts times their weights."""
    with np.errstate(over="ignore"):
        return [Sparse(positions, values * weight) for (positions, values), weight in zip(parts, formula.weights, strict=True)]


def _elected(deltas: Values, election: Election) -> Values:
    voted = deltas * election.vote_weights[:, None]
    total = _add_in_order(voted)
    agree = np.where(total >= 0 if election.zero_is_positive else total > 0, voted > 0, voted < 0)
    mixed = _add_in_order(np.where(agree, deltas * election.sum_weights[:, None], np.float32(0)))
    if election.divisor_weights is not None:
        divisor = _add_in_order(np.where(agree, election.divisor_weights[:, None], np.float32(0)))
        floor = np.float32(election.floor)
        mixed = np.divide(mixed, np.maximum(divisor, floor) if floor > 0 else np.where(divisor == 0, np.float32(1), divisor))
    return mixed * np.float32(election.scale) + np.float32(0)


def _shared(deltas: Values, sharing: Sharing) -> Values:
    kept = np.abs(deltas) > np.float32(sharing.epsilon)
    count = kept.sum(axis=0)
    parts = np.where(count == 1, deltas * sharing.alone[:, None], deltas / np.maximum(count, 1).astype(np.float32))
    return _add_in_order(np.where(kept, parts, np.float32(0)))


def _add_in_order(rows: Values) -> Values:
    """Return the sum of rows `[packs, union]`, first to last, in f32 from +0.0."""
    total = np.zeros(rows.shape[1], np.float32)
    for row in rows:
        total = total + row
    return total
