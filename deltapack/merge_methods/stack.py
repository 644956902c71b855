"""The differences of several packs to one tile, side by side, and what every formula is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Settings", "Sparse", "Stack", "add_in_order", "agreeing", "choose", "stack_terms", "sum_in_order"]

Sparse = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""Positions `[nnz]`, strictly increasing, and values `[nnz] f32`."""


@dataclass(frozen=True)
class Stack:
    """The kept differences of all packs in one tile.

    Attributes:
        positions: `[union] uint32`, those that any pack keeps, increasing.
        deltas: `[packs, union] f32`; +0.0 where a pack keeps nothing.
    """

    positions: NDArray[np.uint32]
    deltas: NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What a formula knows of the tensor.

    Attributes:
        weights: `[packs] f32`.
        options: The method's own parameters, such as `lambda`; truth is 1.0 and 0.0.
        statistic: What the method's `measure` gave, added over the tiles of the tensor in order; empty without one.
        densities: `[packs] f64` share of the elements that each pack keeps by chance; 1 where nothing was dropped.
        numel: Number of elements of the tensor.
    """

    weights: NDArray[np.float32]
    options: Mapping[str, float] = field(default_factory=dict)
    statistic: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    densities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    numel: int = 0

    def number(self, name: str) -> np.float32:
        """Return an option as an f32."""
        return np.float32(self.options[name])


def stack_terms(length: int, parts: Sequence[Sparse]) -> Stack:
    """Lay the sparse differences of the packs side by side.

    Args:
        length: Elements of the tile.
        parts: One sparse difference per pack, in pack order.
    """
    kept = np.zeros(length, np.bool_)
    for positions, _ in parts:
        kept[positions] = True
    union = np.flatnonzero(kept)
    place = np.cumsum(kept, dtype=np.int32) - 1
    deltas = np.zeros((len(parts), len(union)), np.float32)
    for row, (positions, values) in zip(deltas, parts, strict=True):
        row[place[positions]] = values
    return Stack(union.astype(np.uint32), deltas)


def add_in_order(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of rows `[packs, union]`, first to last, in f32 from +0.0."""
    total = np.zeros(rows.shape[1], np.float32)
    for row in rows:
        total += row
    return total


def choose(mask: NDArray[np.bool_], rows: NDArray[np.float32], other: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return `rows` where `mask` is true, else `other`, or +0.0; the shapes are broadcast.

    Chosen bit by bit: `np.where` branches for each element, and masks are random.
    """
    bits = np.negative(mask.astype(np.uint32))
    chosen = np.ascontiguousarray(rows).view(np.uint32) & bits
    if other is not None:
        chosen = chosen | (np.ascontiguousarray(other).view(np.uint32) & ~bits)
    return chosen.view(np.float32)


def agreeing(rows: NDArray[np.float32], sums: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return `[packs, union]` whether a value has the sign of its sum, of which zero counts as positive; zeros never do."""
    positive = sums >= 0
    agree: NDArray[np.bool_] = ((rows > 0) & positive) | ((rows < 0) & ~positive)
    return agree


def sum_in_order(values: NDArray[np.float64]) -> float:
    """Return the sum of `[n] f64`, first to last, so that every machine gets the same bits."""
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0
