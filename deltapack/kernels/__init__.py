"""The loops over tiles, one package per backend: same functions, same bits.

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
from deltapack.kernels.encoded import Encoded
from deltapack.kernels.formulas import Formula

__all__ = ["Backend", "Encoded", "active"]

_Array = NDArray[np.generic]
_Bytes = NDArray[np.uint8]
_Counts = NDArray[np.int64]
_Groups = tuple[NDArray[np.int8], NDArray[np.uint16]]
_Positions = NDArray[np.uint32]
_Values = NDArray[np.float32]
_Sparse = tuple[_Positions, _Values]


class Backend(Protocol):
    """What every backend offers; `deltapack.kernels.reference` documents the functions."""

    def sample_positions(
        self, key: int, keep: int, first_tile: int, lengths: _Counts, out: _Positions | None = None
    ) -> tuple[_Positions, _Counts]:
        """Regenerate the seeded mask of a chunk."""

    def byte_gap_positions(self, raw: _Bytes, counts: _Counts, lengths: _Counts, out: _Positions | None = None) -> _Positions:
        """Decode gaps of one byte."""

    def rice_gap_positions(
        self, raw: _Bytes, shift: int, counts: _Counts, lengths: _Counts, out: _Positions | None = None
    ) -> _Positions:
        """Decode gaps in Rice codes."""

    def bitmap_positions(self, raw: _Bytes, counts: _Counts, lengths: _Counts, out: _Positions | None = None) -> _Positions:
        """Decode a bitmap."""

    def code_values(
        self,
        raw: _Bytes,
        bits: int,
        scales: NDArray[np.uint16],
        counts: _Counts,
        factor: np.float32,
        out: _Values | None = None,
    ) -> _Values:
        """Unpack codes and multiply them with their group's scale."""

    def plane_values(self, raw: _Bytes, dtype: DType, factor: np.float32, out: _Values | None = None) -> _Values:
        """Decode float codes."""

    def sum_terms(self, length: int, terms: Sequence[_Sparse]) -> _Sparse:
        """Add sparse terms in order."""

    def add_in_place(self, elements: _Array, dtype: DType, terms: Sequence[_Sparse]) -> None:
        """Add the sum of sparse terms to elements."""

    def decode_encoded(self, encoded: Encoded, out: _Sparse) -> _Sparse | None:
        """Decode a chunk of a term in one go; none where it has to go step by step."""

    def add_encoded(self, elements: _Array, dtype: DType, encoded: Encoded, out: _Sparse) -> bool:
        """Decode a chunk of a term and add it in one go; false where it has to go step by step."""

    def are_finite(self, elements: _Array, dtype: DType, positions: _Positions) -> bool:
        """Return whether the elements at positions are finite."""

    def add_sparse(self, base: _Array, source: DType, target: DType, positions: _Positions, total: _Values) -> _Array:
        """Return base plus a sparse sum, in another type."""

    def stack_terms(self, length: int, parts: Sequence[_Sparse]) -> _Sparse:
        """Lay sparse differences side by side."""

    def blend(self, length: int, parts: Sequence[_Sparse], formula: Formula) -> _Sparse:
        """Compute a formula over what several packs keep."""

    def add_blended(self, elements: _Array, dtype: DType, parts: Sequence[_Sparse], formula: Formula) -> None:
        """Compute a formula and add the results to elements."""

    def count_shared(self, length: int, parts: Sequence[_Sparse], epsilon: float) -> _Counts:
        """Count what each pack changes as others do, and what it alone changes."""

    def scalar_products(self, length: int, parts: Sequence[_Sparse]) -> NDArray[np.float64]:
        """Add up products of what two packs keep, in f64."""

    def sum_of_squares(self, values: _Values) -> float:
        """Add up squares in f64."""

    def count_high(self, values: _Values) -> _Counts:
        """Count the high bits of magnitudes."""

    def count_low(self, values: _Values, high: int) -> _Counts:
        """Count the low bits of magnitudes."""

    def between(self, values: _Values, least: int, least_ties: int, most: int, most_ties: int) -> _Positions:
        """Return the places of values whose magnitude is between two cuts."""

    def row_ranks(self, values: _Values) -> NDArray[np.uint32]:
        """Rank magnitudes within their rows."""

    def below(self, samples: NDArray[np.uint32], ranks: NDArray[np.uint32], limits: NDArray[np.uint64]) -> _Positions:
        """Return the places of samples below the limit of their rank."""

    def element_samples(self, key: int, first_tile: int, length: int) -> NDArray[np.uint32]:
        """Return a random number for each element."""

    def compare(self, base: _Array, source: DType, tuned: _Array, target: DType) -> tuple[float, float, bool]:
        """Return statistics of the difference of two chunks."""

    def difference(self, base: _Array, source: DType, tuned: _Array, target: DType, out: _Values | None = None) -> _Values:
        """Return fine-tuned minus base."""

    def kept_differences(
        self, base: _Array, source: DType, tuned: _Array, target: DType, positions: _Positions
    ) -> _Values:
        """Return fine-tuned minus base at the kept positions."""

    def quantize_groups(self, values: _Values, counts: _Counts, top: int, mantissa_bits: int, candidates: int) -> _Groups:
        """Choose scales and codes."""

    def sign_groups(self, values: _Values, counts: _Counts) -> _Groups:
        """Choose scales for signs."""

    def pack_codes(self, codes: NDArray[np.int8], bits: int) -> _Bytes:
        """Pack low-bit codes."""

    def byte_gaps(self, positions: _Positions, counts: _Counts) -> _Bytes:
        """Encode gaps of one byte."""

    def bitmap_of(self, positions: _Positions, length: int) -> _Bytes:
        """Encode a bitmap."""


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
