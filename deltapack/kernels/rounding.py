"""Element types as numbers, in numpy. Implements spec/06-arithmetic.md section 6.3.

Elements travel in the storage type of `deltapack.dtypes` (bits); here they become f32 or f64 and come back,
rounded once. Every other backend must give the same bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import BY_NAME, DType
from deltapack.kernels.layout import Elements

__all__ = ["NOT_FINITE", "all_finite", "convert", "from_f32", "from_f64", "is_finite", "quiet_nan", "round_bf16", "to_f32", "to_f64"]

_NAN_BITS = {
    "f64": 0x7FF8000000000000,
    "f32": 0x7FC00000,
    "f16": 0x7E00,
    "bf16": 0x7FC0,
    "f8_e4m3fn": 0x7F,
    "f8_e5m2": 0x7E,
}
NOT_FINITE = {
    "f64": 0x7FF0000000000000,
    "f32": 0x7F800000,
    "f16": 0x7C00,
    "bf16": 0x7F80,
    "f8_e4m3fn": 0x7F,
    "f8_e5m2": 0x7C,
}
"""The least bits, without the sign, of what is no number."""
_F32 = BY_NAME["f32"]


def all_finite(elements: Elements, dtype: DType) -> bool:
    """Whether no element of a float `dtype`, `[n]` in its storage type, is NaN or infinite; about the time of reading them."""
    return not len(elements) or int(_magnitudes(elements, dtype).max()) < NOT_FINITE[dtype.name]


def is_finite(elements: Elements, dtype: DType) -> NDArray[np.bool_]:
    """Return for each element of a float `dtype` whether it is neither NaN nor infinite."""
    found: NDArray[np.bool_] = _magnitudes(elements, dtype) < NOT_FINITE[dtype.name]
    return found


def _magnitudes(elements: Elements, dtype: DType) -> NDArray[np.unsignedinteger[Any]]:
    """Return the bits of elements without their signs."""
    bits = np.ascontiguousarray(elements).view(np.dtype(f"<u{dtype.itemsize}"))
    found: NDArray[np.unsignedinteger[Any]] = bits & bits.dtype.type(2 ** (8 * dtype.itemsize - 1) - 1)
    return found


def quiet_nan(dtype: DType) -> Elements:
    """Return the one NaN that arithmetic may produce in `dtype`, as a 0-d array of its storage type."""
    unsigned = np.dtype(f"<u{dtype.itemsize}")
    return np.array(_NAN_BITS[dtype.name], unsigned).view(dtype.storage)


def to_f32(elements: Elements, dtype: DType) -> NDArray[np.float32]:
    """Return elements of a float `dtype`, `[n]` in its storage type, as f32 (exact, but for f64)."""
    if dtype.name == "bf16":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    if dtype.name.startswith("f8"):
        return _f8_values(dtype.name)[elements.astype(np.intp)]
    with np.errstate(over="ignore", invalid="ignore"):
        return elements.astype(np.float32, copy=False)


def to_f64(elements: Elements, dtype: DType) -> NDArray[np.float64]:
    """Return elements of a float `dtype`, `[n]` in its storage type, as f64; always exact."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return elements.astype(np.float64) if dtype.name == "f64" else to_f32(elements, dtype).astype(np.float64)


def round_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round f32 to the bits of bf16, nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_f32(values: NDArray[np.float32], dtype: DType) -> Elements:
    """Round f32 values `[n]` to `dtype` and return its storage type."""
    if dtype.name == "bf16":
        return round_bf16(values)
    if dtype.name.startswith("f8"):
        return _round_f8(values, dtype.name)
    with np.errstate(over="ignore", invalid="ignore"):
        out = values.astype(dtype.storage)
    out[np.isnan(values)] = quiet_nan(dtype)
    return out


def from_f64(values: NDArray[np.float64], dtype: DType) -> Elements:
    """Round f64 values `[n]` to `dtype`, through f32 where `dtype` is narrower than f64."""
    if dtype.name == "f64":
        return np.where(np.isnan(values), quiet_nan(dtype), values)
    with np.errstate(over="ignore", invalid="ignore"):
        return from_f32(values.astype(np.float32), dtype)


def convert(elements: Elements, source: DType, target: DType) -> Elements:
    """Return elements `[n]` of `source` as `target`; the same bits where both are the same type."""
    if source == target:
        return elements
    if source.name == "f64":
        return from_f64(to_f64(elements, source), target)
    return from_f32(to_f32(elements, source), target)


@lru_cache
def _f8_values(name: str) -> NDArray[np.float32]:
    """Return the value of each of the 256 codes."""
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if name == "f8_e4m3fn" else (5, 2, 15)
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if name == "f8_e4m3fn":
        magnitude[[0x7F, 0xFF]] = np.nan
    else:
        magnitude[[0x7C, 0xFC]] = np.inf
        magnitude[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


def _round_f8(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    finite = _f8_values(name)[: 0x7F if name == "f8_e4m3fn" else 0x7C]
    middles = (finite[:-1] + finite[1:]) / np.float32(2)  # exact in f32
    magnitude = np.abs(values)
    code = np.searchsorted(middles, magnitude, side="left")
    tie = np.searchsorted(middles, magnitude, side="right") != code
    code = np.where(tie & (code & 1 == 1), code + 1, code)
    code = np.where(np.signbit(values), code + 128, code)
    return np.where(np.isnan(values), _NAN_BITS[name], code).astype(np.uint8)
