"""What trits, signs and levels make of Gaussian elements, by the bits that these get."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

__all__ = ["NON_ZERO", "TERNARY_BITS", "TRIT_STAGE", "UNIFORM_FROM", "element_noise", "non_zero"]

TERNARY_BITS, NON_ZERO = 1.0, 0.22
"""Bits of a trit after the zstd stage, and the share of the trits that are not zero, while elements are dropped."""
TRIT_STAGE = 1.0203
"""Bits of trits over their entropy."""
SIGN_NOISE = 1.571
"""What signs with the right gain make of a Gaussian's power, over it: pi / 2."""
UNIFORM_FROM = 1.3
"""Rate from which levels leave less noise than trits of which more are not zero."""
_LEAST = 1e-9


def element_noise(values: str, rate: float) -> float:
    """Return the squared error of Gaussian elements that get so many bits each, with the right gain, relative to their power."""
    if values == "uniform":
        left = math.exp(-math.log(4) * max(rate, 0.5))
        return 1.6 * left / (1 - 1.2 * left)
    density = min(1.0, max(rate, _LEAST) / TERNARY_BITS)
    return (SIGN_NOISE if values == "sign" else _ternary_power(non_zero(rate))) / density - 1


@lru_cache(4096)
def _ternary_power(share: float) -> float:
    """Return |S|^2 |x|^2 / <S, x>^2 of trits S of which this share of a Gaussian x is not zero."""
    at = NormalDist().inv_cdf(1 - share / 2)
    return share / (2 * NormalDist().pdf(at)) ** 2


def non_zero(rate: float) -> float:
    """Return the share of trits that are not zero: more where there are bits for it when no element is dropped any more."""
    if rate <= TERNARY_BITS:
        return NON_ZERO
    low, high = NON_ZERO, 2 / 3
    for _ in range(40):
        middle = (low + high) / 2
        entropy = middle - middle * math.log2(middle) - (1 - middle) * math.log2(1 - middle)
        low, high = (middle, high) if TRIT_STAGE * entropy < rate else (low, middle)
    return high
