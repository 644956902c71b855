"""What the packages of loops have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels.encoded import Encoded
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.formulas import Formula
from deltapack.kernels.layout import Bits, Bytes, Counts, Elements, Lines, Positions, Sparse, Values
from deltapack.kernels.product import Product
from deltapack.kernels.reference.matrices import Matrix

__all__ = ["Backend"]

_Groups = tuple[NDArray[np.int8], NDArray[np.uint16]]


class Backend(Protocol):
    """What every backend offers; `deltapack.kernels.reference` documents the functions."""

    def sample_positions(
        self, key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None
    ) -> tuple[Positions, Counts]:
        """Regenerate the seeded mask of a chunk."""

    def stratified_positions(
        self, key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None
    ) -> tuple[Positions, Counts]:
        """Regenerate the stratified mask of a chunk."""

    def byte_gap_positions(self, raw: Bytes, counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
        """Decode gaps of one byte."""

    def rice_gap_positions(self, raw: Bytes, shift: int, counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
        """Decode gaps in Rice codes."""

    def bitmap_positions(self, raw: Bytes, counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
        """Decode a bitmap."""

    def code_values(
        self,
        raw: Bytes,
        bits: int,
        scales: NDArray[np.uint16],
        counts: Counts,
        factor: np.float32,
        out: Values | None = None,
    ) -> Values:
        """Unpack codes and multiply them with their group's scale."""

    def plane_values(self, raw: Bytes, dtype: DType, factor: np.float32, out: Values | None = None) -> Values:
        """Decode float codes."""

    def trit_codes(self, raw: Bytes, nnz: int) -> NDArray[np.int8]:
        """Unpack trits."""

    def without_zeros(self, codes: NDArray[np.int8], positions: Positions) -> tuple[NDArray[np.int8], Positions]:
        """Return codes that are not 0 and their positions."""

    def scales_at(self, positions: Positions, start: int, lines: Lines) -> Values:
        """Return the scale of each kept element."""

    def scaled_values(
        self, codes: NDArray[np.int8], positions: Positions, start: int, lines: Lines, factor: np.float32, out: Values | None = None
    ) -> Values:
        """Multiply codes with scales of rows and columns."""

    def in_kept_rows(self, positions: Positions, start: int, lines: Lines) -> NDArray[np.bool_]:
        """Return which positions are in rows that are not dropped."""

    def sum_terms(self, length: int, terms: Sequence[Sparse]) -> Sparse:
        """Add sparse terms in order."""

    def add_in_place(self, elements: Elements, dtype: DType, terms: Sequence[Sparse]) -> None:
        """Add the sum of sparse terms to elements."""

    def product_values(self, product: Product, out: Values | None = None) -> Values:
        """Multiply factors."""

    def product_at(self, product: Product, positions: Positions) -> Values:
        """Multiply factors at some places."""

    def kept_residuals(
        self, base: Elements, source: DType, tuned: Elements, target: DType, positions: Positions, product: Product
    ) -> Values:
        """Return what a product leaves of differences at the kept positions."""

    def add_product(self, elements: Elements, dtype: DType, product: Product, kept: Sparse) -> None:
        """Add a product of factors, and a sparse term, to elements."""

    def difference_times(self, base: Elements, source: DType, tuned: Elements, target: DType, right: Values, scale: np.float32) -> Values:
        """Multiply differences with a narrow matrix."""

    def times(self, matrix: Matrix, right: Matrix) -> Matrix:
        """Multiply with a narrow matrix."""

    def transposed_times(self, matrix: Matrix, right: Matrix) -> Matrix:
        """Multiply the transposed matrix with a narrow one."""

    def symmetric_eigen(self, matrix: NDArray[np.float64], vectors: NDArray[np.float64]) -> None:
        """Turn a small symmetric matrix into its eigenvalues."""

    def decode_encoded(self, encoded: Encoded, out: Sparse) -> Sparse | None:
        """Decode a chunk of a term in one go; none where it has to go step by step."""

    def add_encoded(self, elements: Elements, dtype: DType, encoded: Encoded, out: Sparse) -> bool:
        """Decode a chunk of a term and add it in one go; false where it has to go step by step."""

    def are_finite(self, elements: Elements, dtype: DType, positions: Positions) -> bool:
        """Return whether the elements at positions are finite."""

    def add_sparse(self, base: Elements, source: DType, target: DType, positions: Positions, total: Values) -> Elements:
        """Return base plus a sparse sum, in another type."""

    def stack_terms(self, length: int, parts: Sequence[Sparse]) -> tuple[Positions, Values]:
        """Lay sparse differences side by side."""

    def blend(self, length: int, parts: Sequence[Sparse], formula: Formula) -> Sparse:
        """Compute a formula over what several packs keep."""

    def add_blended(self, elements: Elements, dtype: DType, parts: Sequence[Sparse], formula: Formula) -> None:
        """Compute a formula and add the results to elements."""

    def count_shared(self, length: int, parts: Sequence[Sparse], epsilon: float) -> Counts:
        """Count what each pack changes as others do, and what it alone changes."""

    def scalar_products(self, length: int, parts: Sequence[Sparse]) -> NDArray[np.float64]:
        """Add up products of what two packs keep, in f64."""

    def sum_of_squares(self, values: Values) -> float:
        """Add up squares in f64."""

    def histogram_high(self, values: Values) -> Counts:
        """Count the high bits of magnitudes."""

    def histogram_low(self, values: Values, high: int) -> Counts:
        """Count the low bits of magnitudes."""

    def places_between(self, values: Values, least: int, least_ties: int, most: int, most_ties: int) -> Positions:
        """Return the places of values whose magnitude is between two cuts."""

    def row_ranks(self, values: Values) -> NDArray[np.uint32]:
        """Rank magnitudes within their rows."""

    def places_below(self, samples: NDArray[np.uint32], ranks: NDArray[np.uint32], limits: NDArray[np.uint64]) -> Positions:
        """Return the places of samples below the limit of their rank."""

    def element_samples(self, key: int, first_tile: int, length: int) -> NDArray[np.uint32]:
        """Return a random number for each element."""

    def compare(self, base: Elements, source: DType, tuned: Elements, target: DType) -> tuple[float, float, bool]:
        """Return statistics of the difference of two chunks."""

    def difference(self, base: Elements, source: DType, tuned: Elements, target: DType, out: Values | None = None) -> Values:
        """Return fine-tuned minus base."""

    def kept_differences(self, base: Elements, source: DType, tuned: Elements, target: DType, positions: Positions) -> Values:
        """Return fine-tuned minus base at the kept positions."""

    def quantize_groups(self, values: Values, counts: Counts, top: int, mantissa_bits: int, candidates: int) -> _Groups:
        """Choose scales and codes."""

    def sign_groups(self, values: Values, counts: Counts) -> _Groups:
        """Choose scales for signs."""

    def trits_of(self, values: Values, scales: Values, threshold: np.float32) -> NDArray[np.int8]:
        """Return the signs of large values."""

    def level_codes(self, values: Values, scales: Values, threshold: np.float32) -> NDArray[np.int8]:
        """Return levels of a uniform quantiser with a dead zone."""

    def rounded_codes(self, values: Values, scales: Values, top: int) -> NDArray[np.int8]:
        """Round values over their scales."""

    def pack_trits(self, codes: NDArray[np.int8]) -> Bytes:
        """Pack trits."""

    def pack_codes(self, codes: NDArray[np.int8], bits: int) -> Bytes:
        """Pack low-bit codes."""

    def byte_gaps(self, positions: Positions, counts: Counts) -> Bytes:
        """Encode gaps of one byte."""

    def bitmap_of(self, positions: Positions, length: int) -> Bytes:
        """Encode a bitmap."""

    def symbols_of(self, predicted: Bits, tuned: Bits, numbers: Numbers, far: int) -> Bytes:
        """Return the symbol of each difference."""

    def far_symbols_of(self, predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers, far: int) -> Bytes:
        """Return symbols with far ones where signs change."""

    def raw_bits_of(self, predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers, far: int) -> tuple[Bytes, Counts]:
        """Return the raw bits of each tile."""

    def numbers_from(self, predicted: Bits, symbols: Bytes, raw: Bytes, starts: Counts, numbers: Numbers, far: int) -> tuple[Bits, Counts]:
        """Return numbers from symbols and raw bits."""

    def flips_of(self, predicted: Bits, tuned: Bits, numbers: Numbers) -> tuple[int, int]:
        """Count the signs that change."""

    def block_sums(self, symbols: Bytes) -> NDArray[np.uint32]:
        """Add up the symbols of each block."""

    def contexts_of(self, base: Bits, classes: Bytes, maps: NDArray[np.uint8], numbers: Numbers) -> Bytes:
        """Return the context of each number."""

    def predicted_of(self, base: Bits, classes: Bytes, stairs: NDArray[np.uint64], numbers: Numbers) -> Bits:
        """Add steps to numbers."""

    def stairs_of(
        self, base: Bits, tuned: Bits, classes: Bytes, wanted: int, every: int, numbers: Numbers
    ) -> tuple[NDArray[np.uint64], int, int, int]:
        """Find out what is mostly added."""

    def count_symbols(self, base: Bits, classes: Bytes, symbols: Bytes, numbers: Numbers, kinds: int) -> tuple[int, NDArray[np.int64]]:
        """Count symbols by class and context byte."""

    def context_ranges(self, counts: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], int]:
        """Divide context bytes into ranges."""

    def frequencies_of(self, counts: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
        """Scale counts to frequencies."""

    def decoding_table(self, frequencies: NDArray[np.int64], precision: int) -> NDArray[np.uint32]:
        """Return what each slot of each context stands for."""

    def rans_encode(
        self, contexts: Bytes, symbols: Bytes, frequencies: NDArray[np.int64], precision: int, lanes: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint16], Counts]:
        """Encode symbols."""

    def rans_decode(
        self,
        contexts: Bytes,
        table: NDArray[np.uint32],
        precision: int,
        states: NDArray[np.uint32],
        words: NDArray[np.uint16],
        counts: Counts,
    ) -> tuple[Bytes, bool]:
        """Decode symbols."""
