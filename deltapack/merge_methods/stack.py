"""The differences of several packs to one tile, side by side, and what every formula is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels

__all__ = ["Election", "Settings", "Sparse", "Stack"]

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


@dataclass(frozen=True)
class Election:
    """A formula that elects a sign for each element and adds up what has it.

        sign   = that of sum of voice_k * delta_k
        result = scale * sum of share_k * delta_k / sum of measure_k, both over the packs whose voice_k * delta_k has the sign

    Attributes:
        voices: `[packs] f32`.
        shares: `[packs] f32`.
        measures: `[packs] f32`; none where nothing is divided.
        zero_is_positive: The sign where the sum is zero.
        floor: The least divisor; where it is 0, a divisor of 0 counts as 1.
        scale: What the result is multiplied with.
    """

    voices: NDArray[np.float32]
    shares: NDArray[np.float32]
    measures: NDArray[np.float32] | None = None
    zero_is_positive: bool = True
    floor: float = 0.0
    scale: float = 1.0

    def blend(self, length: int, parts: Sequence[Sparse]) -> Sparse:
        """Return what to add to a piece of `length` elements, from what each pack keeps of it."""
        measures = self.shares if self.measures is None else self.measures
        limits = np.float32(self.floor), np.float32(self.scale)
        return kernels.active().blend_elected(
            length, parts, self.voices, self.shares, measures, self.zero_is_positive, self.measures is not None, *limits
        )

    def of(self, deltas: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what to add to the base, `[union] f32`, for differences side by side, `[packs, union] f32`."""
        places = np.arange(deltas.shape[1], dtype=np.uint32)
        return self.blend(len(places), [(places, row) for row in deltas])[1]
