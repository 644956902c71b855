"""Model breadcrumbs: drop the smallest and the very largest differences (Davari & Belilovsky, ECCV 2024, arXiv 2312.06795).

    drop the gamma * elements largest |delta|, then keep the next density * elements; both per tensor, of equal ones the first count as
    larger

Where both together are more than there is, fewer of the largest are dropped. Nothing is rescaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import RecipeError
from deltapack.sparsify.kept import Kept, TensorDelta, kept_at
from deltapack.sparsify.magnitude import count_kept
from deltapack.sparsify.ranking import Cut, cuts_of, places_in_cut

__all__ = ["USUAL_GAMMA", "Breadcrumbs", "check_gamma", "count_outliers", "plan"]

USUAL_GAMMA = 0.01
"""Share of outliers unless one is given."""


def check_gamma(gamma: float) -> None:
    """Refuse what is no share of the elements.

    Raises:
        RecipeError: `gamma` is not in [0, 1).
    """
    if not 0 <= gamma < 1:
        raise RecipeError("gamma is out of range", expected="0 <= gamma < 1", found=gamma)


def count_outliers(gamma: float, kept: int, numel: int) -> int:
    """Return how many of the largest of `numel` elements to drop where `kept` are to be kept."""
    return min(round(gamma * numel), numel - kept)


def plan(delta: TensorDelta) -> Breadcrumbs:
    """Rank the elements of a tensor; takes two or three passes over it."""
    kept = count_kept(delta.density, delta.numel)
    outliers = count_outliers(delta.parameters["gamma"], kept, delta.numel)
    return Breadcrumbs(*cuts_of(delta, kept + outliers, outliers))


@dataclass(frozen=True)
class Breadcrumbs:
    """Keeps what is in the cut and not among the outliers."""

    cut: Cut
    outliers: Cut

    def select(self, chunk: int, delta: NDArray[np.float32]) -> Kept:
        """Return what is kept of a chunk."""
        return kept_at(places_in_cut(chunk, delta, self.cut, self.outliers), delta)
