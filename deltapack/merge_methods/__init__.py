"""Merge methods: how the sparse terms of several packs become one sparse sum. One formula, one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack.merge_methods.linear import linear

__all__ = ["METHODS", "Method", "Sparse"]

Sparse = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""Positions `[nnz]`, strictly increasing, and values `[nnz] f32`."""

Method = Callable[[int, Sequence[Sparse]], Sparse]
"""Takes the elements of a chunk and the weighted terms of the packs in order; returns what to add to the base."""

METHODS: Mapping[str, Method] = {"linear": linear}
