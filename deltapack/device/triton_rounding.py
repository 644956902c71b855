"""Element types as numbers, in Triton: the integer arithmetic of `deltapack.kernels.rounding`, same bits."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["DTYPES", "add_rounded", "element_pointer", "pointer"]

DTYPES = {"f64": 0, "f32": 1, "f16": 2, "bf16": 3, "f8_e4m3fn": 4, "f8_e5m2": 5}
_F64, _F32, _F16, _BF16, _E4M3, _E5M2 = (tl.constexpr(dtype) for dtype in range(6))


@triton.jit
def pointer(address, dtype: tl.constexpr):
    """Return the pointer that an address of 64 bits is."""
    return address.to(tl.pointer_type(dtype))


@triton.jit
def element_pointer(address, DTYPE: tl.constexpr):
    """Return a pointer to elements of a float type, as integers of their width."""
    if DTYPE == _F64:
        return pointer(address, tl.int64)
    elif DTYPE == _F32:
        return pointer(address, tl.int32)
    elif DTYPE == _E4M3 or DTYPE == _E5M2:
        return pointer(address, tl.uint8)
    else:
        return pointer(address, tl.uint16)


@triton.jit
def _wide_f8(code, E: tl.constexpr, M: tl.constexpr):
    """Return the value of 8-bit floats as f32."""
    bias: tl.constexpr = (1 << (E - 1)) - 1
    magnitude = code & 0x7F
    exponent = magnitude >> M
    mantissa = magnitude & ((1 << M) - 1)
    normal = ((exponent + (127 - bias)) << 23) | (mantissa << (23 - M))
    if E == 4:
        normal = tl.where(magnitude == 0x7F, 0x7FC00000, normal)
    else:
        normal = tl.where(exponent == 31, 0x7F800000 | (mantissa << 21), normal)
    small: tl.constexpr = 1.0 / (1 << (bias + M - 1))
    value = tl.where(exponent == 0, mantissa.to(tl.float32) * small, normal.to(tl.float32, bitcast=True))
    return tl.where(code >= 128, -value, value)


@triton.jit
def _to_f32(raw, DTYPE: tl.constexpr):
    if DTYPE == _F32:
        return raw.to(tl.float32, bitcast=True)
    elif DTYPE == _BF16:
        return (raw.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == _F16:
        return raw.to(tl.float16, bitcast=True).to(tl.float32)
    elif DTYPE == _E4M3:
        return _wide_f8(raw.to(tl.int32), 4, 3)
    else:
        return _wide_f8(raw.to(tl.int32), 5, 2)


@triton.jit
def _round_narrow(magnitude, E: tl.constexpr, M: tl.constexpr, BEYOND: tl.constexpr):
    """Round the magnitudes of f32, given as bits, to a type with fewer bits of exponent: nearest, ties to even."""
    bias: tl.constexpr = (1 << (E - 1)) - 1
    drop: tl.constexpr = 23 - M
    normal = ((magnitude + ((1 << (drop - 1)) - 1) + ((magnitude >> drop) & 1)) >> drop) - ((127 - bias) << M)
    # Adding the number whose last bit weighs as much as the type's smallest one rounds a subnormal result.
    magic_bits: tl.constexpr = (127 + 24 - bias - M) << 23
    magic = tl.full(magnitude.shape, magic_bits, tl.int32).to(tl.float32, bitcast=True)
    small = (magnitude.to(tl.float32, bitcast=True) + magic).to(tl.int32, bitcast=True) - magic_bits
    return tl.minimum(tl.where(magnitude < ((128 - bias) << 23), small, normal), BEYOND)


@triton.jit
def _from_f32(value, DTYPE: tl.constexpr):
    """Round to the bits of a type (spec/06-arithmetic.md section 6.3)."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    sign = (bits >> 31) & 1
    is_nan = magnitude > 0x7F800000
    if DTYPE == _F32:
        return tl.where(is_nan, 0x7FC00000, bits)
    elif DTYPE == _BF16:
        rounded = ((magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16) | (sign << 15)
        return tl.where(is_nan, 0x7FC0, rounded).to(tl.uint16)
    elif DTYPE == _F16:
        rounded = _round_narrow(magnitude, 5, 10, 0x7C00) | (sign << 15)
        return tl.where(is_nan, 0x7E00, rounded).to(tl.uint16)
    elif DTYPE == _E4M3:
        rounded = _round_narrow(magnitude, 4, 3, 0x7E) | (sign << 7)
        return tl.where(is_nan, 0x7F, rounded).to(tl.uint8)
    else:
        rounded = _round_narrow(magnitude, 5, 2, 0x7B) | (sign << 7)
        return tl.where(is_nan, 0x7E, rounded).to(tl.uint8)


@triton.jit
def add_rounded(raw, total, SOURCE: tl.constexpr, TARGET: tl.constexpr):
    """Return base plus sum, rounded once; elements are integers of their width."""
    if SOURCE == _F64 or TARGET == _F64:
        if SOURCE == _F64:
            base = raw.to(tl.float64, bitcast=True)
        else:
            base = _to_f32(raw, SOURCE).to(tl.float64)
        wide = base + total.to(tl.float64)
        if TARGET == _F64:
            return tl.where(wide != wide, 0x7FF8000000000000, wide.to(tl.int64, bitcast=True))
        else:
            return _from_f32(wide.to(tl.float32), TARGET)
    else:
        return _from_f32(_to_f32(raw, SOURCE) + total, TARGET)
