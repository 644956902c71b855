"""What a formula gets: the differences that the packs keep of a chunk, and what is known of the tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import Sparse

__all__ = ["Parts", "Settings", "Sparse", "count_signs"]

Parts = Sequence[Sparse]
"""What each pack keeps of a chunk."""


@dataclass(frozen=True)
class Settings:
    """What a formula knows of the tensor.

    Attributes:
        weights: `[packs] f32`.
        options: The method's own parameters, such as `lambda`; truth is 1.0 and 0.0.
        statistic: What the method's `measure` gave, added over the chunks of the tensor in order; empty without one.
        densities: `[packs] f64` share of the elements that each pack keeps by chance; 1 where nothing was dropped.
    """

    weights: NDArray[np.float32]
    options: Mapping[str, float] = field(default_factory=dict)
    statistic: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    densities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def count_signs(length: int, parts: Parts) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return how many packs raise, and how many lower, each element of a chunk, `[length]` each."""
    raised, lowered = np.zeros(length, np.uint16), np.zeros(length, np.uint16)
    for positions, values in parts:
        raised[positions[values > 0]] += 1
        lowered[positions[values < 0]] += 1
    return raised, lowered
