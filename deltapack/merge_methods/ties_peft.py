"""TIES as PEFT computes it for adapters (peft 0.21.2, utils/merge_utils.py), here on the differences themselves.

    sign   = +1 where sum of delta_k >= 0, else -1          elected by the unweighted differences
    M_k    = [sign of delta_k is that sign]                 zeros never agree
    result = base + (sum of weight_k * delta_k * M_k) / max(1, sum of M_k)

The divisor counts packs, so weights keep their size: two packs of weight 0.5 that agree give a quarter of their sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.merge_methods.stack import Settings, divide

__all__ = ["ties_peft"]


def ties_peft(deltas: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """Return what to add to the base, `[union] f32`."""
    ones = np.ones(len(deltas), np.float32)
    mixed, count = kernels.active().elect(deltas, ones, settings.weights, ones, zero_is_positive=True)
    return divide(mixed, np.maximum(count, np.float32(1)))
