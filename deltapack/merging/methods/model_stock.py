"""Model Stock (Jang et al., ECCV 2024, arXiv 2403.19522), per tensor.

    cos    = mean over pairs of packs of cos(delta_i, delta_j)
    t      = K * cos / (1 + (K - 1) * cos)                  K packs, at least 2; 0 where the divisor is below 1e-6
    result = base + sum of t/K * delta_k

Dropping at random shrinks cosines: with independent masks of densities q_i and q_j the products keep their expectation and the norms
grow by 1/sqrt(q), so cos(kept) = sqrt(q_i q_j) * cos(dense). The cosines are divided by that, and then cut to [0, 1], as the estimate
is noisy where few elements are kept (standard deviation about 1 / (q sqrt(elements))). Masks that depend on the data (magnitude, DELLA,
breadcrumbs) have no such correction and are refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.kernels.formulas import WeightedSum
from deltapack.merging.methods.settings import Parts, Settings

__all__ = ["model_stock", "products", "step_length"]


def products(length: int, parts: Parts, settings: Settings) -> NDArray[np.float64]:
    """Return `[packs, packs] f64` scalar products."""
    return kernels.active().scalar_products(length, parts)


def step_length(gram: NDArray[np.float64], densities: NDArray[np.float64]) -> float:
    """Return t from the scalar products of the packs and the shares of elements that they keep by chance."""
    packs, cosines = len(gram), []
    for i in range(packs):
        for j in range(i + 1, packs):
            norms = (gram[i, i] * gram[j, j]) ** 0.5
            cosine = max(-1.0, min(1.0, gram[i, j] / max(norms, 1e-12)))
            chance = (densities[i] * densities[j]) ** 0.5
            cosines.append(cosine if chance == 1 else max(0.0, min(1.0, cosine / chance)))
    mean = sum(cosines) / len(cosines)
    divisor = 1 + (packs - 1) * mean
    return 0.0 if abs(divisor) < 1e-6 else packs * mean / divisor


def model_stock(settings: Settings) -> WeightedSum:
    """Return the formula with its numbers: what was measured makes it a linear merge."""
    packs = len(settings.weights)
    return WeightedSum(np.full(packs, step_length(settings.statistic, settings.densities) / packs, np.float32))
