"""Value codecs: codes and scales of a chunk to bytes and back (spec/codecs/values.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.planes import join_planes, split_planes
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels.layout import GROUP, Counts, Values

__all__ = ["codes_raw_length", "decode_values", "pack_codes", "scales_raw_length"]

Raw = bytes | NDArray[np.uint8]


def codes_raw_length(codec: str, nnz: int) -> int:
    """Return the bytes of a `codes` stream of `nnz` elements."""
    return -(-nnz * VALUE_CODECS[codec].bits // 8)


def scales_raw_length(counts: Counts) -> int:
    """Return the bytes of a `scales` stream for the kept elements of each tile."""
    return 2 * int((-(-counts // GROUP)).sum())


def pack_codes(codec: str, codes: NDArray[np.generic]) -> bytes:
    """Return the `codes` stream: of `[nnz]` floats in storage type, or of `[nnz] int8` codes."""
    row = VALUE_CODECS[codec]
    return kernels.active().pack_codes(codes.astype(np.int8, copy=False), row.bits).tobytes() if row.scaled else split_planes(codes)


def decode_values(codec: str, codes: Raw, scales: Raw, counts: Counts, factor: np.float32, out: Values | None = None) -> Values:
    """Return the values `[nnz] f32` of a chunk.

    Args:
        codec: Value codec.
        codes: Its `codes` stream, of the length that `codes_raw_length` gives.
        scales: Its `scales` stream, empty for float codecs.
        counts: `[tiles] int64` kept elements of each tile.
        factor: The term's factor times the pack's weight.
        out: Room for the values; the result is a view of it.

    Raises:
        FormatError: A code or scale is not finite, or unused bits are set (rule R9).
    """
    row, loops, raw = VALUE_CODECS[codec], kernels.active(), np.frombuffer(codes, np.uint8)
    if row.dtype is not None:
        return loops.plane_values(raw, row.dtype, factor, out)
    steps = join_planes(scales, "<u2").astype(np.uint16, copy=False)
    return loops.code_values(raw, row.bits, steps, counts, factor, out)
