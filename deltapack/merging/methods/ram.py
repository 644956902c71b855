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
from deltapack.kernels.formulas import Sharing
from deltapack.merging.methods.settings import Parts, Settings

__all__ = ["ram", "ramplus", "shared_and_unique"]


def shared_and_unique(length: int, parts: Parts, settings: Settings) -> NDArray[np.float64]:
    """Return `[2, packs]` counts of the elements that a pack shares with others, and that it alone keeps."""
    return kernels.active().count_shared(length, parts, settings.options["epsilon"]).astype(np.float64)


def ram(settings: Settings) -> Sharing:
    """Return the formula with its numbers."""
    return Sharing(settings.options["epsilon"], np.ones(len(settings.weights), np.float32))


def ramplus(settings: Settings) -> Sharing:
    """Return the formula with its numbers."""
    epsilon, r, alpha = (np.float32(settings.options[name]) for name in ("epsilon", "r", "alpha"))
    shared, unique = settings.statistic.astype(np.float32)
    return Sharing(settings.options["epsilon"], np.float32(1) + r * np.minimum(shared / np.maximum(unique, epsilon), alpha))
