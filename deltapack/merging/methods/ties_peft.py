"""TIES as PEFT computes it for adapters (peft 0.21.2, utils/merge_utils.py), here on the differences themselves.

    sign   = +1 where sum of delta_k >= 0, else -1          elected by the unweighted differences
    M_k    = [sign of delta_k is that sign]                 zeros never agree
    result = base + (sum of weight_k * delta_k * M_k) / max(1, sum of M_k)

The divisor counts packs, so weights keep their size: two packs of weight 0.5 that agree give a quarter of their sum.
"""

from __future__ import annotations

import numpy as np

from deltapack.kernels.formulas import Election
from deltapack.merging.methods.settings import Settings

__all__ = ["election"]


def election(settings: Settings) -> Election:
    """Return the formula with its numbers."""
    ones = np.ones(len(settings.weights), np.float32)
    return Election(ones, settings.weights, ones)
