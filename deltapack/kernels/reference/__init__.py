"""The loops over tiles in numpy: the oracle that every faster backend must match bit for bit.

All functions work on one chunk (at most 16 tiles of 65,536 elements). `positions` are `[nnz] uint32`,
counted from the start of the chunk and strictly increasing; `counts` and `lengths` are `[tiles] int64`:
kept elements and elements of each tile. Where `out` is given, the result is a view of it, so that a loop over chunks need not allocate.
"""

from deltapack.kernels.reference.adding import add_encoded, add_in_place, add_sparse, are_finite, decode_encoded, sum_terms
from deltapack.kernels.reference.blending import add_blended, blend
from deltapack.kernels.reference.choosing import element_samples, histogram_high, histogram_low, places_below, places_between, row_ranks
from deltapack.kernels.reference.encoding import compare, difference, kept_differences, pack_codes, quantize_groups, settled, sign_groups
from deltapack.kernels.reference.exact_model import context_ranges, count_symbols, decoding_table, frequencies_of
from deltapack.kernels.reference.exact_rans import rans_decode, rans_encode
from deltapack.kernels.reference.exact_symbols import (
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
from deltapack.kernels.reference.factors import add_product, kept_residuals, product_at, product_values
from deltapack.kernels.reference.matrices import difference_times, symmetric_eigen, times, transposed_times
from deltapack.kernels.reference.positions import (
    bitmap_of,
    bitmap_positions,
    byte_gap_positions,
    byte_gaps,
    gap_thresholds,
    philox,
    rice_gap_positions,
    sample_positions,
)
from deltapack.kernels.reference.relating import count_shared, scalar_products, stack_terms, sum_of_squares
from deltapack.kernels.reference.scaling import in_kept_rows, level_codes, rounded_codes, scaled_values, scales_at, trits_of
from deltapack.kernels.reference.strata import stratified_positions
from deltapack.kernels.reference.trits import pack_trits, trit_codes, without_zeros
from deltapack.kernels.reference.values import code_values, group_counts, plane_values, unpack_codes

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
    "gap_thresholds",
    "group_counts",
    "histogram_high",
    "histogram_low",
    "in_kept_rows",
    "kept_differences",
    "kept_residuals",
    "level_codes",
    "numbers_from",
    "pack_codes",
    "pack_trits",
    "philox",
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
    "settled",
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
    "unpack_codes",
    "without_zeros",
]
