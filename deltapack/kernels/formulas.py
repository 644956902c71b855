"""What becomes of the differences of several packs, element by element: the formulas that a backend computes in one go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Election", "Formula", "Sharing", "WeightedSum"]

_Weights = NDArray[np.float32]


@dataclass(frozen=True)
class WeightedSum:
    """A formula that adds up.

        result = sum of weight_k * delta_k

    Attributes:
        weights: `[packs] f32`.
    """

    weights: _Weights


@dataclass(frozen=True)
class Election:
    """A formula that elects a sign for each element and adds up what has it.

        sum    = sum of vote_k * delta_k;  elected: + where it is above 0, - where it is below, by `zero_is_positive` where it is 0
        M_k    = [vote_k * delta_k has the elected sign]                                zeros never have it
        result = scale * sum of (delta_k * weight_k) M_k / sum of divisor_k M_k

    Attributes:
        vote_weights: `[packs] f32` weights in the election.
        sum_weights: `[packs] f32` weights in the result.
        divisor_weights: `[packs] f32` what each pack adds to the divisor; none where nothing is divided.
        zero_is_positive: The sign where the sum is zero.
        floor: The least divisor; where it is 0, a divisor of 0 counts as 1.
        scale: What the result is multiplied with.
    """

    vote_weights: _Weights
    sum_weights: _Weights
    divisor_weights: _Weights | None = None
    zero_is_positive: bool = True
    floor: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Sharing:
    """A formula that takes what one pack changed, and the mean of what several changed.

        c      = number of packs with |delta_k| > epsilon
        result = sum over them of delta_k * alone_k where c is 1, of delta_k / c elsewhere

    Attributes:
        epsilon: A difference of this magnitude or less is no change.
        alone: `[packs] f32` factors of what only one pack changed.
    """

    epsilon: float
    alone: _Weights


Formula = WeightedSum | Election | Sharing
"""Sums run in f32 in pack order from +0.0; a pack that does not keep an element has no part in them. Results are never -0.0."""
