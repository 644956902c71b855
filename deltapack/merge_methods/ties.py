"""TIES as mergekit computes it (Yadav et al., NeurIPS 2023, arXiv 2306.01708; mergekit 0.1.5, generalized task arithmetic).

    W_k    = weight_k * delta_k
    sign   = +1 where sum of W_k >= 0, else -1              elected by the weighted differences
    M_k    = [sign of W_k is that sign]                     zeros never agree
    mixed  = sum of W_k * M_k, divided by the sum of weight_k * M_k if `normalize` (by 1 where that is 0)
    result = base + lambda * mixed

`dare_ties`, `della` and `breadcrumbs_ties` are this formula over packs whose sparsifier has that name.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.merge_methods.stack import Settings, divide

__all__ = ["ties"]


def ties(deltas: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """Return what to add to the base, `[union] f32`."""
    weights = settings.weights
    mixed, divisor = kernels.active().elect(deltas, weights, weights, weights, zero_is_positive=True)
    if settings.options["normalize"]:
        mixed = divide(mixed, np.where(divisor == 0, np.float32(1), divisor))
    return mixed if settings.options["lambda"] == 1 else mixed * settings.number("lambda")
