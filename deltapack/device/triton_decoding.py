"""The positions and values of a block of items, in Triton: same bits as `deltapack.kernels.reference`."""

from __future__ import annotations

import triton
import triton.language as tl

from deltapack.device.tables import VALUES
from deltapack.device.triton_rounding import pointer
from deltapack.kernels.layout import GROUP

__all__ = ["halves", "pair", "steps", "values_of"]

_SEEDED, _GAPS, _WIDE, _BITMAP = (tl.constexpr(kind) for kind in range(4))
_GROUP = tl.constexpr(GROUP)
_INT, _SIGN, _V32, _VBF16, _VF16 = (tl.constexpr(form) for form in VALUES.values())


@triton.jit
def _gaps_of(samples, thresholds):
    """Return how many of the 255 thresholds are below each sample, by bisection."""
    gap = tl.zeros_like(samples).to(tl.int32)
    for level in tl.static_range(8):
        half = 128 >> level
        gap += tl.where(tl.load(thresholds + (gap + half - 1)) < samples, half, 0)
    return gap


@triton.jit
def steps(kind, at, items, index, tile, low, high, thresholds, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """Return by how much each of the items [at, at + BLOCK) moves the cursor, and whether it keeps an element."""
    item = at + tl.arange(0, BLOCK)
    there = item < items
    step = tl.where(there, 1, 0)
    kept = there
    if KINDS & 1:
        if kind == _SEEDED:
            block = (at // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
            none = tl.zeros_like(block)
            k0 = none + low
            k1 = none + high
            a, b, c, d = tl.philox_impl(block, none + tile.to(tl.uint32), none, none, k0, k1, 10)
            samples = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK])
            gap = _gaps_of(samples, pointer(thresholds, tl.uint32))
            kept = gap < 255
            step = gap + kept.to(tl.int32)
    if KINDS & 2:
        if kind == _GAPS:
            gap = tl.load(pointer(index, tl.uint8) + item, mask=there, other=255).to(tl.int32)
            kept = gap < 255
            step = tl.where(there, gap + kept.to(tl.int32), 0)
    if KINDS & 4:
        if kind == _WIDE:
            gap = tl.load(pointer(index, tl.uint16) + item, mask=there, other=0).to(tl.int32)
            step = tl.where(there, gap + 1, 0)
    if KINDS & 8:
        if kind == _BITMAP:
            byte = tl.load(pointer(index, tl.uint8) + item // 8, mask=there, other=0).to(tl.int32)
            kept = ((byte >> (item & 7)) & 1) == 1
    return step, kept


@triton.jit
def pair(step, kept, BLOCK: tl.constexpr):
    """Return steps and what they keep in one number, so that both are summed at once: a block moves by at most 255 times its length."""
    if BLOCK <= 1024:
        return step | (kept.to(tl.int32) << 20)
    else:
        return step.to(tl.int64) | (kept.to(tl.int64) << 32)


@triton.jit
def halves(sums, BLOCK: tl.constexpr):
    """Return the two sums of a sum of pairs."""
    if BLOCK <= 1024:
        return sums & 0xFFFFF, sums >> 20
    else:
        return (sums & 0xFFFFFFFF).to(tl.int32), (sums >> 32).to(tl.int32)


@triton.jit
def values_of(values, bits, codes, first, scales, order, mask, factor, VALUES: tl.constexpr):
    """Return the values of kept elements: code times scale times factor (spec/06-arithmetic.md section 6.1)."""
    at = first + order.to(tl.int64)
    value = tl.zeros(order.shape, tl.float32)
    if VALUES & 3:
        if values <= _SIGN:
            place = at * bits
            byte = tl.load(pointer(codes, tl.uint8) + (place >> 3), mask=mask, other=0).to(tl.int32)
            field = (byte >> (place & 7).to(tl.int32)) & ((1 << bits) - 1)
            half = 1 << (bits - 1)
            code = tl.where(values == _SIGN, 1 - 2 * field, (field ^ half) - half)
            scale = tl.load(pointer(scales, tl.uint16) + order // _GROUP, mask=mask, other=0).to(tl.uint32) << 16
            value = code.to(tl.float32) * (scale.to(tl.float32, bitcast=True) * factor)
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
    return value
