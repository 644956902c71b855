"""The differences of several packs to one tile, side by side, and what every formula is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Settings", "Sparse", "Stack", "add_in_order", "divide", "sum_in_order"]

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


def add_in_order(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of rows `[packs, union]`, first to last, in f32 from +0.0."""
    total = np.zeros(rows.shape[1], np.float32)
    for row in rows:
        total = total + row
    return total


def divide(dividend: NDArray[np.float32], divisor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the quotient `[union] f32`."""
    quotient: NDArray[np.float32] = np.divide(dividend, divisor, dtype=np.float32)
    return quotient


def sum_in_order(values: NDArray[np.float64]) -> float:
    """Return the sum of `[n] f64`, first to last, so that every machine gets the same bits."""
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0
