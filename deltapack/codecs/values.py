"""Value codecs: codes and scales of a chunk to bytes and back (spec/codecs/values.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.planes import join_planes, split_planes
from deltapack.dtypes import BY_NAME
from deltapack.kernels.layout import GROUP, Counts, Values

__all__ = ["BITS", "codes_raw_length", "decode_values", "is_float", "pack_codes", "scales_raw_length"]

Raw = bytes | NDArray[np.uint8]
BITS = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4, "int3": 4, "int2": 2, "sign": 1}
"""Bits of a stored code, before the zstd stage."""
_FLOATS = frozenset({"f32", "bf16", "f16"})


def is_float(codec: str) -> bool:
    """Return whether the codec stores floats and has no scales."""
    return codec in _FLOATS


def codes_raw_length(codec: str, nnz: int) -> int:
    """Return the bytes of a `codes` stream of `nnz` elements."""
    return -(-nnz * BITS[codec] // 8)


def scales_raw_length(counts: Counts) -> int:
    """Return the bytes of a `scales` stream for the kept elements of each tile."""
    return 2 * int((-(-counts // GROUP)).sum())


def pack_codes(codec: str, codes: NDArray[np.generic]) -> bytes:
    """Return the `codes` stream: of `[nnz]` floats in storage type, or of `[nnz] int8` codes."""
    if is_float(codec):
        return split_planes(codes)
    return kernels.active().pack_codes(codes.astype(np.int8, copy=False), BITS[codec]).tobytes()


def decode_values(
    codec: str, codes: Raw, scales: Raw, counts: Counts, factor: np.float32, out: Values | None = None
) -> Values:
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
    loops, raw = kernels.active(), np.frombuffer(codes, np.uint8)
    if is_float(codec):
        return loops.plane_values(raw, BY_NAME[codec], factor, out)
    steps = join_planes(scales, "<u2").astype(np.uint16, copy=False)
    return loops.code_values(raw, BITS[codec], steps, counts, factor, out)
