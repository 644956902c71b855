"""Linear merging, also known as task arithmetic (Ilharco et al., ICLR 2023, arXiv 2212.04089).

    result = base + sum over packs k of weight_k * delta_k

The weight is folded into the factor of each term, so the terms arrive weighted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels

__all__ = ["linear"]


def linear(
    length: int, terms: Sequence[tuple[NDArray[np.uint32], NDArray[np.float32]]]
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return the sum of the terms, added in order in f32; positions that no term keeps are absent."""
    return kernels.active().sum_terms(length, terms)
