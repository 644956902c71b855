"""How differences become codes, by the row of their codec.

Codes of a group are those of a few widths that have the largest cosine to its values, and its scale makes their projection on the values
as long as these are: the gain is 1, where least squares would shrink what it is unsure of. Scales have few mantissa bits: the error barely
moves (0.1 dB), while they then cost 5 bits instead of 10 after zstd. Codes of 8 bits lose nothing that a gain could make up for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.errors import NonFiniteError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels import rounding

__all__ = ["quantize", "scaled_codes"]


def quantize(codec: str, values: NDArray[np.float32], counts: NDArray[np.int64]) -> tuple[NDArray[np.generic], NDArray[np.uint16]]:
    """Return the codes `[nnz]` and bf16 scales `[groups]` that stand for `values` `[nnz] f32`.

    Float codecs return the rounded values in their storage type and no scales.

    Raises:
        NonFiniteError: A value overflows a float codec.
    """
    row = VALUE_CODECS[codec]
    if row.search is not None:
        return kernels.active().quantize_groups(values, counts, row.search.top, row.search.mantissa_bits, row.search.candidates)
    if row.dtype is None:
        return kernels.active().sign_groups(values, counts)
    codes = rounding.from_f32(values, row.dtype)
    if not np.isfinite(rounding.to_f32(codes, row.dtype)).all():
        raise NonFiniteError(f"a difference is too large for values={codec}", hint="Use --values f32.")
    return codes, np.zeros(0, np.uint16)


def scaled_codes(codec: str, values: NDArray[np.float32], scales: NDArray[np.float32], threshold: float) -> NDArray[np.int8]:
    """Return the codes `[nnz] int8` of values whose scales are known.

    Args:
        codec: A value codec with scales.
        values: `[nnz] f32`.
        scales: Scale of each.
        threshold: As `deltapack.codecs.scaling.Scaling` says.
    """
    row, loops = VALUE_CODECS[codec], kernels.active()
    if row.coding == "trits":
        return loops.trits_of(values, scales, np.float32(threshold))
    if row.coding == "levels":
        return loops.level_codes(values, scales, np.float32(threshold))
    if row.search is None:
        return np.where(np.signbit(values), -1, 1).astype(np.int8)
    return loops.rounded_codes(values, scales, row.search.top)
