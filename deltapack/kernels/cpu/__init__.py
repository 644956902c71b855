"""The loops over tiles compiled by numba: the functions of `deltapack.kernels.reference`, the same bits, several times faster.

Loops release the GIL and are cached on disk, so only the first run on a machine compiles. What gains nothing is taken from the
reference as it is.
"""

from deltapack.kernels.cpu.adding import add_in_place, add_sparse, are_finite, sum_terms
from deltapack.kernels.cpu.blending import add_blended, blend
from deltapack.kernels.cpu.choosing import element_samples, histogram_high, histogram_low, places_below, places_between, row_ranks
from deltapack.kernels.cpu.encoding import compare, difference, kept_differences, pack_codes, quantize_groups, sign_groups
from deltapack.kernels.cpu.exact_model import context_ranges, count_symbols, decoding_table, frequencies_of
from deltapack.kernels.cpu.exact_rans import rans_decode
from deltapack.kernels.cpu.exact_rans_encoding import rans_encode
from deltapack.kernels.cpu.exact_symbols import (
    block_sums,
    contexts_of,
    far_symbols_of,
    flips_of,
    numbers_from,
    predicted_of,
    raw_bits_of,
    stairs_of,
    symbols_of,
)
from deltapack.kernels.cpu.factors import add_product, kept_residuals, product_at, product_values
from deltapack.kernels.cpu.fused import add_encoded, decode_encoded
from deltapack.kernels.cpu.matrices import difference_times, symmetric_eigen, times, transposed_times
from deltapack.kernels.cpu.positions import (
    bitmap_of,
    bitmap_positions,
    byte_gap_positions,
    byte_gaps,
    rice_gap_positions,
    sample_positions,
)
from deltapack.kernels.cpu.relating import count_shared, scalar_products, stack_terms, sum_of_squares
from deltapack.kernels.cpu.scaling import in_kept_rows, level_codes, rounded_codes, scaled_values, scales_at, trits_of
from deltapack.kernels.cpu.strata import stratified_positions
from deltapack.kernels.cpu.trits import pack_trits, trit_codes, without_zeros
from deltapack.kernels.cpu.values import code_values, plane_values

__all__ = [
    "add_blended",
    "add_encoded",
    "add_in_place",
    "add_product",
    "add_sparse",
    "are_finite",
    "bitmap_of",
    "bitmap_positions",
    "blend",
    "block_sums",
    "byte_gap_positions",
    "byte_gaps",
    "code_values",
    "compare",
    "context_ranges",
    "contexts_of",
    "count_shared",
    "count_symbols",
    "decode_encoded",
    "decoding_table",
    "difference",
    "difference_times",
    "element_samples",
    "far_symbols_of",
    "flips_of",
    "frequencies_of",
    "histogram_high",
    "histogram_low",
    "in_kept_rows",
    "kept_differences",
    "kept_residuals",
    "level_codes",
    "numbers_from",
    "pack_codes",
    "pack_trits",
    "places_below",
    "places_between",
    "plane_values",
    "predicted_of",
    "product_at",
    "product_values",
    "quantize_groups",
    "rans_decode",
    "rans_encode",
    "raw_bits_of",
    "rice_gap_positions",
    "rounded_codes",
    "row_ranks",
    "sample_positions",
    "scalar_products",
    "scaled_values",
    "scales_at",
    "sign_groups",
    "stack_terms",
    "stairs_of",
    "stratified_positions",
    "sum_of_squares",
    "sum_terms",
    "symbols_of",
    "symmetric_eigen",
    "times",
    "transposed_times",
    "trit_codes",
    "trits_of",
    "without_zeros",
]
