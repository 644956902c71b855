"""Merge methods: how the sparse differences of several packs become one. One formula, one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltapack.merge_methods.linear import linear
from deltapack.merge_methods.stack import Sparse

__all__ = ["Method", "Sparse", "linear"]

Method = Callable[[int, Sequence[Sparse]], Sparse]
"""Takes the elements of a chunk and the weighted terms in order; returns what to add to the base."""
