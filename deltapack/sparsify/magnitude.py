"""Magnitude: keep the largest differences of each tensor, as they are (the trim of TIES, Yadav et al., NeurIPS 2023, arXiv 2306.01708).

    k = density * elements, rounded, at least 1;  keep the k largest |delta|, of equal ones the first

Zeros are never kept, so a tensor with fewer changes than k is kept exactly. Nothing is rescaled: with 1/density it would be worse than
without (MergeLM).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack.sparsify.kept import Kept, TensorDelta, kept_at
from deltapack.sparsify.ranking import Cut, cuts_of, places_in_cut

__all__ = ["Magnitude", "count_kept", "plan"]


def count_kept(density: float, numel: int) -> int:
    """Return how many of `numel` elements to keep."""
    return max(1, round(density * numel))


def plan(delta: TensorDelta) -> Magnitude:
    """Rank the elements of a tensor; takes two or three passes over it."""
    return Magnitude(*cuts_of(delta, count_kept(delta.density, delta.numel)))


@dataclass(frozen=True)
class Magnitude:
    """Keeps what is in the cut."""

    cut: Cut

    def select(self, chunk: int, delta: NDArray[np.float32]) -> Kept:
        """Return what is kept of a chunk."""
        return kept_at(places_in_cut(chunk, delta, self.cut), delta)
