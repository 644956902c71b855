"""The loops over tiles, one module per backend: same functions, same bits.

`reference` (numpy) says what is right; `cpu` (numba) is what runs where numba can be imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType

__all__ = ["Backend", "active"]

_Array = NDArray[np.generic]
_Positions = NDArray[np.uint32]
_Values = NDArray[np.float32]
_Counts = NDArray[np.int64]


class Backend(Protocol):
    """What every backend module offers; `deltapack.kernels.reference` documents the functions."""

    def sample_positions(self, key: int, keep: int, first_tile: int, lengths: _Counts) -> tuple[_Positions, _Counts]:
        """Regenerate the seeded mask of a chunk."""

    def positions_from_gaps(self, gaps: _Counts, counts: _Counts, lengths: _Counts) -> _Positions:
        """Turn gaps into positions."""

    def unpack_codes(self, raw: NDArray[np.uint8], bits: int, nnz: int) -> NDArray[np.int8]:
        """Unpack low-bit codes."""

    def scale_codes(
        self, codes: NDArray[np.int8], scales: NDArray[np.uint16], counts: _Counts, factor: np.float32
    ) -> _Values:
        """Multiply codes with their group scales."""

    def search_steps(
        self,
        integers: NDArray[np.int32],
        negative: NDArray[np.bool_],
        start: NDArray[np.uint32],
        inverse: _Values,
        top: int,
        mantissa_bits: int,
        candidates: int,
    ) -> NDArray[np.uint32]:
        """Find the scale of each group with the least squared error."""

    def sum_terms(self, length: int, terms: Sequence[tuple[_Positions, _Values]]) -> tuple[_Positions, _Values]:
        """Add sparse terms in order."""

    def add_sparse(self, base: _Array, source: DType, target: DType, positions: _Positions, total: _Values) -> _Array:
        """Return base plus a sparse sum."""


@cache
def active() -> Backend:
    """Return the fastest backend that this machine has: `cpu`, or `reference` without numba, with a warning."""
    try:
        from deltapack.kernels import cpu
    except ImportError as error:
        from deltapack.kernels import reference

        what = f"numba cannot be imported ({error}): the same results, several times slower"
        warnings.warn(what, RuntimeWarning, stacklevel=2)
        return reference
    return cpu
