"""TIES as PEFT computes it for adapters (peft 0.21.2, utils/merge_utils.py), here on the differences themselves.

    sign   = +1 where sum of delta_k >= 0, else -1          elected by the unweighted differences
    M_k    = [sign of delta_k is that sign]                 zeros never agree
    result = base + (sum of weight_k * delta_k * M_k) / max(1, sum of M_k)

The divisor counts packs, so weights keep their size: two packs of weight 0.5 that agree give a quarter of their sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.merge_methods.stack import Settings, add_in_order, agreeing, choose

__all__ = ["ties_peft"]


def ties_peft(deltas: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """Return what to add to the base, `[union] f32`."""
    agree = agreeing(deltas, add_in_order(deltas))
    count = np.maximum(agree.sum(axis=0), 1).astype(np.float32)
    mixed: NDArray[np.float32] = add_in_order(choose(agree, deltas * settings.weights[:, None])) / count
    return mixed
