"""Linear merging, also known as task arithmetic (Ilharco et al., ICLR 2023, arXiv 2212.04089).

    result = base + lambda * sum over packs k of weight_k * delta_k        (normalize: divided by sum of weight_k)

`lambda` and the divisor are folded into the weights, and the weights into the factors of the terms, so the terms arrive weighted and are
only added. `dare_linear`, `della_linear` and `breadcrumbs` are this formula over packs whose sparsifier has that name; `average` is it with
all weights equal to 1 / packs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from deltapack import kernels
from deltapack.kernels.formulas import WeightedSum
from deltapack.kernels.layout import Sparse
from deltapack.merging.methods.settings import Settings

__all__ = ["effective_weights", "linear", "weighted_sum"]

_NEGLIGIBLE = 1e-8
"""A sum of weights that is nearer to zero does not divide (mergekit's rule)."""


def linear(length: int, terms: Sequence[Sparse]) -> Sparse:
    """Return the sum of the terms, added in order in f32; positions that no term keeps are absent."""
    return kernels.active().sum_terms(length, terms)


def weighted_sum(settings: Settings) -> WeightedSum:
    """Return the formula with its numbers, where the weights already are the effective ones."""
    return WeightedSum(settings.weights)


def effective_weights(weights: Sequence[float], *, normalize: bool, scale: float) -> list[float]:
    """Return `scale * weight`, divided by the sum of the weights if they are to be normalized."""
    total = reduce(add, weights, 0.0)  # not `sum`, which corrects its rounding from Python 3.12 on
    divisor = total if normalize and abs(total) >= _NEGLIGIBLE else 1.0
    return [scale * weight / divisor for weight in weights]
