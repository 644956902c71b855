"""The values of a block of kept elements, in Triton: same bits as `deltapack.kernels.reference`."""

from __future__ import annotations

import triton
import triton.language as tl

from deltapack.device.tables import SCALINGS, VALUES
from deltapack.device.triton_rounding import pointer
from deltapack.kernels.layout import GROUP

__all__ = ["values_of"]

_GROUP = tl.constexpr(GROUP)
_SIGN, _V32, _VBF16, _VF16, _TRITS, _FACTORS = (tl.constexpr(VALUES[form]) for form in ("sign", "f32", "bf16", "f16", "trits", "factors"))
_GROUPS, _ALIKE, _OUTER = (tl.constexpr(SCALINGS[scales]) for scales in ("", "tensor", "outer"))


@triton.jit
def _codes_of(values, bits, codes, at, mask, VALUES: tl.constexpr):
    """Return codes that are scaled."""
    code = tl.zeros(at.shape, tl.int32)
    if VALUES & 3:
        if values <= _SIGN:
            place = at * bits
            byte = tl.load(pointer(codes, tl.uint8) + (place >> 3), mask=mask, other=0).to(tl.int32)
            field = (byte >> (place & 7).to(tl.int32)) & ((1 << bits) - 1)
            half = 1 << (bits - 1)
            code = tl.where(values == _SIGN, 1 - 2 * field, (field ^ half) - half)
    if VALUES & 32:
        if values == _TRITS:
            number = at.to(tl.int32)
            place = number % 5
            byte = tl.load(pointer(codes, tl.uint8) + number // 5, mask=mask, other=0).to(tl.int32)
            # Less than 2^8 over 3^k is its product with 2^16 over 3^k, rounded up, less 16 bits.
            low = tl.where(place == 0, 65536, tl.where(place == 1, 21846, 7282))
            field = (byte * tl.where(place < 3, low, tl.where(place == 3, 2428, 810))) >> 16
            field -= 3 * ((field * 21846) >> 16)
            code = field - 3 * (field >> 1)
    return code


@triton.jit
def _scale(term):
    """Return the scale of all codes of a term."""
    return tl.load(term + 10).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _scales_of(term, scaling, scales, order, mask, row, column, factor, SCALES: tl.constexpr):
    """Return what codes are multiplied with."""
    found = tl.zeros(order.shape, tl.float32)
    if SCALES & 1:
        if scaling == _GROUPS:
            scale = tl.load(pointer(scales, tl.uint16) + order // _GROUP, mask=mask, other=0).to(tl.uint32) << 16
            found = scale.to(tl.float32, bitcast=True) * factor
    if SCALES & 2:
        if scaling == _ALIKE:
            found += _scale(term) * factor
    if SCALES & 12:
        if scaling > _ALIKE:
            size = tl.load(pointer(tl.load(term + 11), tl.float32) + row, mask=mask, other=0.0)
            if SCALES & 8:
                if scaling == _OUTER:
                    size = size * tl.load(pointer(tl.load(term + 12), tl.float32) + column, mask=mask, other=0.0)
            found = (size * _scale(term)) * factor
    return found


@triton.jit
def _products(term, row, column, mask, factor):
    """Return the sums of the products of two factors, each rounded, in order."""
    width, height, rank, sizes = tl.load(term + 8), tl.load(term + 13), tl.load(term + 14), pointer(tl.load(term + 15), tl.float32)
    left, right = pointer(tl.load(term + 11), tl.float32), pointer(tl.load(term + 12), tl.float32)
    total = tl.zeros(row.shape, tl.float32)
    for number in tl.range(0, rank.to(tl.int32)):
        one = tl.load(left + row, mask=mask, other=0.0) * (tl.load(sizes + number) * factor)
        product = one * tl.load(right + column, mask=mask, other=0.0)
        total = tl.where(number == 0, product, total + product)
        left += height
        right += width
    return total


@triton.jit
def values_of(
    term, values, bits, scaling, codes, first, scales, order, row, column, mask, factor, VALUES: tl.constexpr, SCALES: tl.constexpr
):  # fmt: skip
    """Return the values of kept elements (spec/06-arithmetic.md section 6.1), and which of them have one: a trit of 0 keeps nothing."""
    at = first + order.to(tl.int64)
    value = tl.zeros(order.shape, tl.float32)
    there = mask
    if VALUES & 35:
        if (values <= _SIGN) | (values == _TRITS):
            code = _codes_of(values, bits, codes, at, mask, VALUES)
            value = code.to(tl.float32) * _scales_of(term, scaling, scales, order, mask, row, column, factor, SCALES)
            if VALUES & 32:
                there = mask & ((code != 0) | (values <= _SIGN))
    if VALUES & 4:
        if values == _V32:
            value = tl.load(pointer(codes, tl.float32) + at, mask=mask, other=0.0) * factor
    if VALUES & 8:
        if values == _VBF16:
            wide = tl.load(pointer(codes, tl.uint16) + at, mask=mask, other=0).to(tl.uint32) << 16
            value = wide.to(tl.float32, bitcast=True) * factor
    if VALUES & 16:
        if values == _VF16:
            value = tl.load(pointer(codes, tl.float16) + at, mask=mask, other=0.0).to(tl.float32) * factor
    if VALUES & 64:
        if values == _FACTORS:
            value = _products(term, row, column, mask, factor)
    return value, there
