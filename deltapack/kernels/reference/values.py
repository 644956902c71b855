"""Values of kept elements from stored codes (spec/codecs/values.md, spec/06-arithmetic.md section 6.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.kernels import rounding
from deltapack.kernels.layout import GROUP, Counts, Values

__all__ = ["code_values", "group_counts", "plane_values", "require_finite", "unpack_codes"]

_EXPONENT = {"f32": 0x7F800000, "bf16": 0x7F80, "f16": 0x7C00}


def code_values(
    raw: NDArray[np.uint8],
    bits: int,
    scales: NDArray[np.uint16],
    counts: Counts,
    factor: np.float32,
    out: Values | None = None,
) -> Values:
    """Return the values `[nnz] f32` of packed codes with bf16 group scales.

    Args:
        raw: Packed codes, as `unpack_codes` takes them.
        bits: Bits of a code: 8, 4, 2 or 1.
        scales: `[groups] uint16` bits of the scales.
        counts: `[tiles] int64` kept elements of each tile.
        factor: The term's factor times the pack's weight.
        out: Room for the values.

    Raises:
        FormatError: A scale is not finite, or unused bits are set (rule R9).
    """
    codes = unpack_codes(raw, bits, int(counts.sum()))
    require_finite(scales, _EXPONENT["bf16"], "scale")
    out = np.empty(len(codes), np.float32) if out is None else out[: len(codes)]
    with np.errstate(over="ignore", invalid="ignore"):
        steps = (scales.astype(np.uint32) << 16).view(np.float32) * factor
        np.multiply(codes.astype(np.float32), np.repeat(steps, group_counts(counts)), out=out)
    return out


def unpack_codes(raw: NDArray[np.uint8], bits: int, nnz: int) -> NDArray[np.int8]:
    """Unpack `nnz` two's complement codes of 8, 4 or 2 bits, or signs (1 bit: 0 is 1, 1 is -1).

    Raises:
        FormatError: Unused bits are set (rule R9).
    """
    if bits == 8:
        return raw.view(np.int8)
    per_byte = 8 // bits
    codes = np.empty((len(raw), per_byte), np.int8)
    for slot in range(per_byte):
        # Shift the code to the top of the byte and back down: the arithmetic shift extends its sign.
        codes[:, slot] = (raw << np.uint8(8 - bits * (slot + 1))).view(np.int8) >> (8 - bits)
    flat = codes.reshape(-1)
    if flat[nnz:].any():
        raise FormatError("unused bits of the codes are set", rule="R9")
    return 1 + 2 * flat[:nnz] if bits == 1 else flat[:nnz]


def group_counts(counts: Counts) -> NDArray[np.int64]:
    """Return the size of each scale group of a chunk: up to 128 kept elements, never across tiles."""
    groups = -(-counts // GROUP)
    sizes = np.full(int(groups.sum()), GROUP, np.int64)
    last = np.cumsum(groups)[groups > 0] - 1
    sizes[last] = (counts - (groups - 1) * GROUP)[groups > 0]
    return sizes


def plane_values(raw: NDArray[np.uint8], dtype: DType, factor: np.float32, out: Values | None = None) -> Values:
    """Return the values `[nnz] f32` of float codes in byte planes (spec/02-container.md section 2.5).

    Args:
        raw: The byte planes, least significant first.
        dtype: f32, bf16 or f16.
        factor: The term's factor times the pack's weight.
        out: Room for the values.

    Raises:
        FormatError: A code is not finite (rule R9).
    """
    elements = np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T).reshape(-1).view(dtype.storage)
    require_finite(elements.view(f"<u{dtype.itemsize}"), _EXPONENT[dtype.name], "code")
    out = np.empty(len(elements), np.float32) if out is None else out[: len(elements)]
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(rounding.to_f32(elements, dtype), factor, out=out)
    return out


def require_finite(bits: NDArray[np.unsignedinteger], exponent: int, what: str) -> None:
    """Refuse bits of floats whose exponent is that of infinity and NaN.

    Raises:
        FormatError: There are such (rule R9).
    """
    if np.any((bits & bits.dtype.type(exponent)) == exponent):
        raise FormatError(f"a {what} is not finite", rule="R9")
