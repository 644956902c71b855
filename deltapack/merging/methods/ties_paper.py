"""TIES as its paper has it (Yadav et al., NeurIPS 2023, arXiv 2306.01708, algorithm 1; also MergeLM).

    sign   = sign of sum of delta_k; where that is 0, the sign that most elements of the tensor have
    M_k    = [sign of delta_k is that sign]
    result = base + lambda * (sum of delta_k * M_k) / max(1, sum of M_k)

There are no weights. The paper elects the sign for zero sums over the whole model, here, as in MergeLM for language models, it is per
tensor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.kernels.formulas import Election
from deltapack.merging.methods.settings import Parts, Settings

__all__ = ["election", "majority"]


def majority(length: int, parts: Parts, settings: Settings) -> NDArray[np.float64]:
    """Return `[1]` how many more sums are positive than negative."""
    _, sums = kernels.active().sum_terms(length, parts)
    return np.array([np.sign(sums).sum(dtype=np.float64)])


def election(settings: Settings) -> Election:
    """Return the formula with its numbers."""
    ones = np.ones(len(settings.weights), np.float32)
    return Election(ones, ones, ones, bool(settings.statistic[0] > 0), scale=settings.options["lambda"])
