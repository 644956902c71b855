"""Value codecs: codes and scales of a chunk to bytes and back (spec/codecs/values.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.planes import join_planes, split_planes
from deltapack.dtypes import BY_NAME
from deltapack.errors import FormatError
from deltapack.kernels import reference, rounding

__all__ = ["BITS", "codes_raw_length", "decode_values", "is_float", "pack_codes", "scales_raw_length"]

Counts = NDArray[np.int64]
BITS = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4, "int3": 4, "int2": 2, "sign": 1}
"""Bits of a stored code, before the zstd stage."""
_EXPONENT = {"f32": 0x7F800000, "bf16": 0x7F80, "f16": 0x7C00}


def is_float(codec: str) -> bool:
    """Return whether the codec stores floats and has no scales."""
    return codec in _EXPONENT


def codes_raw_length(codec: str, nnz: int) -> int:
    """Return the bytes of a `codes` stream of `nnz` elements."""
    return -(-nnz * BITS[codec] // 8)


def scales_raw_length(counts: Counts) -> int:
    """Return the bytes of a `scales` stream for the kept elements of each tile."""
    return 2 * int((-(-counts // reference.GROUP)).sum())


def pack_codes(codec: str, codes: NDArray[np.generic]) -> bytes:
    """Return the `codes` stream: of `[nnz]` floats in storage type, or of `[nnz] int8` codes."""
    if is_float(codec) or codec == "int8":
        return split_planes(codes)
    bits = BITS[codec]
    per_byte = 8 // bits
    fields = codes.astype(np.int8).view(np.uint8) & np.uint8((1 << bits) - 1)
    if codec == "sign":
        fields = (codes.astype(np.int8) < 0).view(np.uint8)
    padded = np.zeros(-(-len(fields) // per_byte) * per_byte, np.uint8)
    padded[: len(fields)] = fields
    shifted = padded.reshape(-1, per_byte) << np.arange(0, 8, bits, dtype=np.uint8)
    packed: bytes = np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes()
    return packed


def decode_values(
    codec: str, codes: bytes, scales: bytes, counts: Counts, factor: np.float32
) -> NDArray[np.float32]:
    """Return the values `[nnz] f32` of a chunk.

    Args:
        codec: Value codec.
        codes: Its `codes` stream, of the length that `codes_raw_length` gives.
        scales: Its `scales` stream, empty for float codecs.
        counts: `[tiles] int64` kept elements of each tile.
        factor: The term's factor times the pack's weight.

    Raises:
        FormatError: A code or scale is not finite, or unused bits are set (rule R9).
    """
    nnz = int(counts.sum())
    if is_float(codec):
        dtype = BY_NAME[codec]
        elements = join_planes(codes, dtype.storage)
        _require_finite(elements.view(f"<u{dtype.itemsize}"), _EXPONENT[codec], "code")
        with np.errstate(over="ignore", invalid="ignore"):
            return rounding.to_f32(elements, dtype) * factor
    steps = join_planes(scales, "<u2").astype(np.uint16, copy=False)
    _require_finite(steps, _EXPONENT["bf16"], "scale")
    unpacked = kernels.active().unpack_codes(np.frombuffer(codes, np.uint8), BITS[codec], nnz)
    return kernels.active().scale_codes(unpacked, steps, counts, factor)


def _require_finite(bits: NDArray[np.unsignedinteger], exponent: int, what: str) -> None:
    if np.any((bits & bits.dtype.type(exponent)) == exponent):
        raise FormatError(f"a {what} is not finite", rule="R9")
