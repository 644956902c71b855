"""TIES as mergekit computes it (Yadav et al., NeurIPS 2023, arXiv 2306.01708; mergekit 0.1.5, generalized task arithmetic).

    W_k    = weight_k * delta_k
    sign   = +1 where sum of W_k >= 0, else -1              elected by the weighted differences
    M_k    = [sign of W_k is that sign]                     zeros never agree
    mixed  = sum of W_k * M_k, divided by the sum of weight_k * M_k if `normalize` (by 1 where that is 0)
    result = base + lambda * mixed

`dare_ties`, `della` and `breadcrumbs_ties` are this formula over packs whose sparsifier has that name.
"""

from __future__ import annotations

from deltapack.kernels.formulas import Election
from deltapack.merging.methods.settings import Settings

__all__ = ["election"]


def election(settings: Settings) -> Election:
    """Return the formula with its numbers."""
    weights = settings.weights
    return Election(weights, weights, weights if settings.options["normalize"] else None, scale=settings.options["lambda"])
