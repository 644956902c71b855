"""Value codecs: codes and scales of a chunk to bytes and back (spec/codecs/values.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.levels import levels_raw_bounds, pack_levels, unpack_levels
from deltapack.codecs.planes import join_planes, split_planes
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels.layout import GROUP, TRITS, Bytes, Counts, Values
from deltapack.kernels.reference.values import unpack_codes as unpack_fields

__all__ = ["codes_raw_bounds", "codes_raw_length", "decode_values", "pack_codes", "scales_raw_length", "unpack_codes"]

Raw = bytes | NDArray[np.uint8]


def codes_raw_length(codec: str, nnz: int) -> int:
    """Return the bytes of a `codes` stream of `nnz` elements; of a codec whose codes take as many bits each time."""
    row = VALUE_CODECS[codec]
    return -(-nnz // TRITS) if row.coding == "trits" else -(-nnz * row.bits // 8)


def codes_raw_bounds(codec: str, nnz: int) -> tuple[int, int]:
    """Return the smallest and largest raw length of a `codes` stream of `nnz` elements (rule R8)."""
    return levels_raw_bounds(nnz) if VALUE_CODECS[codec].coding == "levels" else (codes_raw_length(codec, nnz),) * 2


def scales_raw_length(counts: Counts) -> int:
    """Return the bytes of a `scales` stream for the kept elements of each tile."""
    return 2 * int((-(-counts // GROUP)).sum())


def pack_codes(codec: str, codes: NDArray[np.generic]) -> bytes:
    """Return the `codes` stream: of `[nnz]` floats in storage type, or of `[nnz] int8` codes."""
    row = VALUE_CODECS[codec]
    if row.coding == "planes":
        return split_planes(codes)
    signed = codes.astype(np.int8, copy=False)
    if row.coding == "levels":
        return pack_levels(signed)
    loops = kernels.active()
    return (loops.pack_trits(signed) if row.coding == "trits" else loops.pack_codes(signed, row.bits)).tobytes()


def unpack_codes(codec: str, raw: Bytes, nnz: int) -> NDArray[np.int8]:
    """Return the codes `[nnz] int8` of a codec with scales.

    Args:
        codec: Value codec.
        raw: Its `codes` stream, of a length within `codes_raw_bounds`.
        nnz: Number of codes.

    Raises:
        FormatError: The stream is damaged (rule R9).
    """
    row = VALUE_CODECS[codec]
    if row.coding == "levels":
        return unpack_levels(raw.tobytes(), nnz)
    return kernels.active().trit_codes(raw, nnz) if row.coding == "trits" else unpack_fields(raw, row.bits, nnz)


def decode_values(codec: str, codes: Raw, scales: Raw, counts: Counts, factor: np.float32, out: Values | None = None) -> Values:
    """Return the values `[nnz] f32` of a chunk of floats, or of codes whose groups have scales.

    Args:
        codec: Value codec.
        codes: Its `codes` stream, of the length that `codes_raw_bounds` gives.
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
