"""What the encoder computes of a chunk, compiled; `deltapack.kernels.reference.encoding` says what each function does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import as_f32, as_u32, compiled, loops_on, widen
from deltapack.kernels.layout import GROUP, Counts, Elements, Values
from deltapack.kernels.reference.encoding import LANES, LEVELS, TINY, Groups, same_bits, widths

__all__ = ["compare", "difference", "kept_differences", "pack_codes", "quantize_groups", "sign_groups"]

sign_groups = reference.sign_groups
_INFINITE = 0x7F800000


def compare(base: Elements, source: DType, tuned: Elements, target: DType) -> tuple[float, float, bool]:
    """See the reference."""
    one, other = loops_on(base, source), loops_on(tuned, target)
    if one is None or other is None or source != target:
        return reference.compare(base, source, tuned, target)
    lanes = np.zeros(LANES, np.float64)
    largest = np.uint32(_statistics(one, other, lanes)).view(np.float32)
    if not np.isfinite(largest):  # rare: are these the same on both sides?
        return reference.compare(base, source, tuned, target)
    l1 = 0.0
    for lane in lanes.tolist():
        l1 += lane
    return l1, float(largest), same_bits(base, tuned)


@compiled
def _statistics(base: NDArray[np.uint16], tuned: NDArray[np.uint16], lanes: NDArray[np.float64]) -> Any:
    """Add |difference| to the lanes and return the bits of the largest."""
    rows = len(base) // LANES
    largest = np.zeros(LANES, np.uint32)
    for row in range(np.uint64(rows)):
        start = row * np.uint64(LANES)
        for lane in range(np.uint64(LANES)):
            magnitude = as_u32(widen(tuned[start + lane]) - widen(base[start + lane])) & np.uint32(0x7FFFFFFF)
            lanes[lane] += np.float64(as_f32(magnitude))
            largest[lane] = max(largest[lane], magnitude)
    for i in range(rows * LANES, len(base)):
        magnitude = as_u32(widen(tuned[i]) - widen(base[i])) & np.uint32(0x7FFFFFFF)
        lanes[i - rows * LANES] += np.float64(as_f32(magnitude))
        largest[0] = max(largest[0], magnitude)
    return largest.max()


def difference(base: Elements, source: DType, tuned: Elements, target: DType, out: Values | None = None) -> Values:
    """See the reference."""
    one, other = loops_on(base, source), loops_on(tuned, target)
    if one is None or other is None:
        return reference.difference(base, source, tuned, target)
    out = np.empty(len(base), np.float32) if out is None else out
    largest = _subtract_all(one, other, out)
    return out if largest < _INFINITE else reference.settled(out, base, source, tuned, target)


@compiled
def _subtract_all(base: NDArray[np.uint16], tuned: NDArray[np.uint16], out: Values) -> np.uint32:
    """Write the differences and return the bits of the largest exponent."""
    largest = np.uint32(0)
    for i in range(np.uint64(len(base))):
        delta = widen(tuned[i]) - widen(base[i])
        out[i] = delta
        largest = max(largest, as_u32(delta) & np.uint32(0x7F800000))
    return largest


def kept_differences(base: Elements, source: DType, tuned: Elements, target: DType, positions: NDArray[np.uint32]) -> Values:
    """See the reference."""
    one, other = loops_on(base, source), loops_on(tuned, target)
    if one is None or other is None:
        return reference.kept_differences(base, source, tuned, target, positions)
    out = np.empty(len(positions), np.float32)
    largest = _subtract(one, other, positions, out)
    return out if largest < _INFINITE else reference.settled(out, base[positions], source, tuned[positions], target)


@compiled
def _subtract(base: NDArray[np.uint16], tuned: NDArray[np.uint16], positions: NDArray[np.uint32], out: Values) -> np.uint32:
    """Write the differences at positions and return the bits of the largest exponent."""
    largest = np.uint32(0)
    for i in range(np.uint64(len(positions))):
        position = np.uint64(positions[i])
        delta = widen(tuned[position]) - widen(base[position])
        out[i] = delta
        largest = max(largest, as_u32(delta) & np.uint32(0x7F800000))
    return largest


def quantize_groups(values: Values, counts: Counts, top: int, mantissa_bits: int, candidates: int) -> Groups:
    """See the reference."""
    codes = np.empty(len(values), np.int8)
    scales = np.empty(int((-(-counts // GROUP)).sum()), np.uint16)
    unit = np.uint32(1 << 23 - mantissa_bits)
    tried = widths(top, candidates) if candidates > 1 else np.zeros(0, np.float32)
    _quantize(values, counts, np.float32(top), unit, tried, codes, scales)
    return codes, scales


@compiled
def _quantize(
    values: Values,
    counts: Counts,
    top: np.float32,
    unit: np.uint32,
    tried: Values,
    codes: NDArray[np.int8],
    scales: NDArray[np.uint16],
) -> None:
    integers = np.zeros(GROUP, np.int32)
    position = group = np.uint64(0)
    for count in counts:
        end = position + np.uint64(count)
        while position < end:
            size = min(np.uint64(GROUP), end - position)
            part, into = values[position : position + size], codes[position : position + size]
            bits = _reaching(part, top, unit, into) if len(tried) == 0 else _projected(part, top, unit, tried, integers, into)
            scales[group] = np.uint16(bits >> np.uint32(16))
            position += size
            group += np.uint64(1)


@compiled
def _extreme(values: Values) -> Any:
    """Return the largest magnitude of a group and the bit of the sign of its scale: 1 where the first that reaches it is positive."""
    magnitude = np.uint32(0)  # as integers, as a loop over floats would have to keep their order
    for i in range(np.uint64(len(values))):
        magnitude = max(magnitude, as_u32(values[i]) & np.uint32(0x7FFFFFFF))
    largest = as_f32(magnitude)
    for i in range(np.uint64(len(values))):
        if abs(values[i]) == largest:
            return largest, np.uint32(0x80000000) if values[i] > 0 else np.uint32(0)
    return largest, np.uint32(0)


@compiled
def _reaching(values: Values, top: np.float32, unit: np.uint32, codes: NDArray[np.int8]) -> Any:
    """Write codes and return the bits of the scale that reaches the largest magnitude."""
    largest, sign = _extreme(values)
    if largest < TINY:
        codes[:] = np.int8(0)
        return np.uint32(0)
    drop = unit - np.uint32(1)
    bits = min((as_u32(largest / top) + drop) & ~drop, np.uint32(0x7F800000) - unit) | sign
    step = as_f32(bits)
    for i in range(np.uint64(len(values))):
        codes[i] = np.int8(min(max(np.rint(values[i] / step), -top), top - np.float32(1)))
    return bits


@compiled
def _projected(
    values: Values, top: np.float32, unit: np.uint32, tried: Values, integers: NDArray[np.int32], codes: NDArray[np.int8]
) -> Any:
    """Write the codes that point most nearly to where values do and return the bits of the scale; `integers` is room for 128."""
    largest, sign = _extreme(values)
    if largest < TINY:
        codes[:] = np.int8(0)
        return np.uint32(0)
    inverse = np.float32(LEVELS) / largest
    # A negative scale negates the codes; negating the integers instead gives the same products.
    turn = np.float32(-1) if sign else np.float32(1)
    integers[:] = np.int32(0)
    squares = np.int32(0)  # at most 128 * 2047^2
    for i in range(np.uint64(len(values))):
        integers[i] = np.int32(np.rint(values[i] * inverse) * turn)
        squares = np.int32(squares + np.int32(integers[i] * integers[i]))
    low, high = -top, top - np.float32(1)
    best, products, powers = np.float32(0), np.int64(0), np.int64(1)
    for width in tried:
        reciprocal = np.float32(1) / width
        product = power = np.int32(0)
        for i in range(GROUP):
            code = np.int32(min(max(np.rint(np.float32(integers[i]) * reciprocal), low), high))
            product = np.int32(product + np.int32(code * integers[i]))
            power = np.int32(power + np.int32(code * code))
        wide = np.int64(product)
        if wide * wide * powers > products * products * np.int64(power):
            best, products, powers = reciprocal, wide, np.int64(power)
    for i in range(np.uint64(len(values))):
        codes[i] = np.int8(min(max(np.rint(np.float32(integers[i]) * best), low), high))
    scale = np.float32(np.float64(squares) / np.float64(max(products, np.int64(1))) * (np.float64(largest) / np.float64(LEVELS)))
    bits = min((as_u32(scale) + (unit >> np.uint32(1))) & ~(unit - np.uint32(1)), np.uint32(0x7F800000) - unit)
    return bits | sign if products > 0 else np.uint32(0)


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """See the reference."""
    if bits == 8:
        return codes.view(np.uint8)
    out = np.zeros(-(-len(codes) * bits // 8), np.uint8)
    _pack(codes.view(np.uint8), np.uint64(bits), out)
    return out


@compiled
def _pack(codes: NDArray[np.uint8], bits: np.uint64, out: NDArray[np.uint8]) -> None:
    per_byte, mask = np.uint64(8) // bits, np.uint8((np.uint64(1) << bits) - np.uint64(1))
    is_sign = bits == np.uint64(1)  # whose bit is that of the negative code
    for slot in range(min(per_byte, np.uint64(len(codes)))):
        last = (np.uint64(len(codes)) - np.uint64(1) - slot) // per_byte
        for at in range(last + np.uint64(1)):
            code = codes[at * per_byte + slot]
            out[at] |= np.uint8((code >> np.uint8(7) if is_sign else code & mask) << np.uint8(slot * bits))
