"""Values of kept elements from stored codes, compiled; `deltapack.kernels.reference.values` says what each function does."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import as_f32, compiled
from deltapack.kernels.layout import GROUP, Counts, Values
from deltapack.kernels.reference.values import require_finite

__all__ = ["code_table", "code_values", "plane_values"]


def code_values(
    raw: NDArray[np.uint8],
    bits: int,
    scales: NDArray[np.uint16],
    counts: Counts,
    factor: np.float32,
    out: Values | None = None,
) -> Values:
    """See the reference."""
    nnz = int(counts.sum())
    unused = -nnz * bits % 8
    if unused and raw[-1] >> (8 - unused):
        raise FormatError("unused bits of the codes are set", rule="R9")
    values = np.empty(nnz, np.float32) if out is None else out[:nnz]
    _unpack(raw, code_table(bits), values)
    if not _scale(values, scales, factor, counts):
        require_finite(scales, 0x7F80, "scale")
    return values


@lru_cache
def code_table(bits: int) -> Values:
    """Return the codes that each byte holds, `[256, codes] f32`."""
    every = np.arange(256, dtype=np.uint8)
    return reference.unpack_codes(every, bits, 256 * 8 // bits).astype(np.float32).reshape(256, 8 // bits)


@compiled
def _unpack(raw: NDArray[np.uint8], table: Values, values: Values) -> None:
    two, one, per_byte = np.uint64(2), np.uint64(1), np.uint64(table.shape[1])
    whole = np.uint64(len(values)) // per_byte
    if per_byte == two:
        for at in range(whole):
            values[two * at] = table[raw[at], 0]
            values[two * at + one] = table[raw[at], 1]
    else:
        for at in range(whole):
            for slot in range(per_byte):
                values[per_byte * at + slot] = table[raw[at], slot]
    for slot in range(np.uint64(len(values)) - whole * per_byte):
        values[whole * per_byte + slot] = table[raw[whole], slot]


@compiled
def _scale(values: Values, scales: NDArray[np.uint16], factor: np.float32, counts: Counts) -> bool:
    """Multiply with the group's step; false if a scale is not finite."""
    position = group = np.uint64(0)
    finite = True
    for count in counts:
        end = position + np.uint64(count)
        while position < end:
            stop, scale = min(position + np.uint64(GROUP), end), scales[group]
            finite = finite and scale & np.uint16(0x7F80) != np.uint16(0x7F80)
            step = as_f32(np.uint32(scale) << np.uint32(16)) * factor
            for i in range(position, stop):
                values[i] = values[i] * step
            position = stop
            group += np.uint64(1)
    return finite


def plane_values(raw: NDArray[np.uint8], dtype: DType, factor: np.float32, out: Values | None = None) -> Values:
    """See the reference."""
    if dtype.name not in ("bf16", "f32"):
        return reference.plane_values(raw, dtype, factor, out)
    planes = raw.reshape(dtype.itemsize, -1)
    values = np.empty(planes.shape[1], np.float32) if out is None else out[: planes.shape[1]]
    largest = np.uint32(_join2(planes, factor, values) if dtype.name == "bf16" else _join4(planes, factor, values))
    require_finite(np.array([largest]), 0x7F800000, "code")
    return values


@compiled
def _join2(planes: NDArray[np.uint8], factor: np.float32, values: Values) -> np.uint32:
    largest = np.uint32(0)
    for i in range(len(values)):
        bits = (np.uint32(planes[1, i]) << np.uint32(24)) | (np.uint32(planes[0, i]) << np.uint32(16))
        values[i] = as_f32(bits) * factor
        largest = max(largest, bits & np.uint32(0x7F800000))
    return largest


@compiled
def _join4(planes: NDArray[np.uint8], factor: np.float32, values: Values) -> np.uint32:
    largest = np.uint32(0)
    for i in range(len(values)):
        high = (np.uint32(planes[3, i]) << np.uint32(24)) | (np.uint32(planes[2, i]) << np.uint32(16))
        bits = high | (np.uint32(planes[1, i]) << np.uint32(8)) | np.uint32(planes[0, i])
        values[i] = as_f32(bits) * factor
        largest = max(largest, bits & np.uint32(0x7F800000))
    return largest
