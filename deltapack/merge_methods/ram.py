"""RAM: sum what one pack changed, average what several changed (arXiv 2601.13572; mergekit 0.1.5). Made for sparse differences.

    kept_k = [|delta_k| > epsilon];  c = number of packs that keep the element
    result = base + sum over packs that keep it of delta_k * (lambda_k if c = 1, else 1 / c)
    ram         lambda_k = 1
    ramplus_tl  lambda_k = 1 + r * min(alpha, shared_k / max(unique_k, epsilon))

Of the elements of the tensor that pack k keeps, `shared_k` are kept by others, too, and `unique_k` are not.
There are no weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.merge_methods.stack import Settings

__all__ = ["ram", "ramplus", "shared_and_unique"]


def shared_and_unique(deltas: NDArray[np.float32], settings: Settings) -> NDArray[np.float64]:
    """Return `[2, packs]` counts of the elements that a pack shares with others, and that it alone keeps."""
    kept = np.abs(deltas) > settings.number("epsilon")
    shared = kept & (kept.sum(axis=0) > 1)
    return np.array([shared.sum(axis=1), (kept & ~shared).sum(axis=1)], np.float64)


def ram(deltas: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """Return what to add to the base, `[union] f32`."""
    return kernels.active().mix_shared(deltas, settings.number("epsilon"), np.ones(len(deltas), np.float32))


def ramplus(deltas: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """Return what to add to the base, `[union] f32`."""
    shared, unique = settings.statistic.astype(np.float32)
    ratio = shared / np.maximum(unique, settings.number("epsilon"))
    alone = np.float32(1) + settings.number("r") * np.minimum(ratio, settings.number("alpha"))
    return kernels.active().mix_shared(deltas, settings.number("epsilon"), alone)
