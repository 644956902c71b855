"""What the encoder computes of a chunk, compiled; `deltapack.kernels.reference.encoding` says what each function does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import as_f32, as_u32, compiled, loops_on, widen
from deltapack.kernels.layout import GROUP, Counts, Elements, Values
from deltapack.kernels.reference.encoding import LANES, LEVELS, TINY, Groups, same_bits

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
    offsets = np.arange(candidates, dtype=np.uint32) << np.uint32(23 - mantissa_bits)
    reach = np.float32(top - (0 if top == 128 else 0.5))
    _quantize(values, counts, np.float32(top), reach, np.uint32(1 << 23 - mantissa_bits), offsets, codes, scales)
    return codes, scales


@compiled
def _quantize(
    values: Values,
    counts: Counts,
    top: np.float32,
    reach: np.float32,
    unit: np.uint32,
    offsets: NDArray[np.uint32],
    codes: NDArray[np.int8],
    scales: NDArray[np.uint16],
) -> None:
    exact = np.zeros(GROUP, np.float32)
    position = group = np.uint64(0)
    for count in counts:
        end = position + np.uint64(count)
        while position < end:
            size = min(np.uint64(GROUP), end - position)
            step = _best_step(values[position : position + size], top, reach, unit, offsets, exact)
            scales[group] = np.uint16(as_u32(step) >> np.uint32(16))
            for i in range(size):
                code = min(max(np.rint(values[position + i] / step), -top), top - np.float32(1))
                codes[position + i] = np.int8(code) if step != 0 else np.int8(0)
            position += size
            group += np.uint64(1)


@compiled
def _best_step(values: Values, top: np.float32, reach: np.float32, unit: np.uint32, offsets: NDArray[np.uint32], exact: Values) -> Any:
    """Return the scale of a group; `exact` is room for 128 values."""
    magnitude = np.uint32(0)  # as integers, as a loop over floats would have to keep their order
    for i in range(np.uint64(len(values))):
        magnitude = max(magnitude, as_u32(values[i]) & np.uint32(0x7FFFFFFF))
    largest = as_f32(magnitude)
    if largest < TINY:
        return np.float32(0)
    negative = False
    for i in range(np.uint64(len(values))):
        if abs(values[i]) == largest:
            negative = values[i] > 0
            break
    drop = unit - np.uint32(1)
    start = min((as_u32(largest / reach) + drop) & ~drop, np.uint32(0x7F800000) - unit)
    inverse = np.float32(LEVELS) / largest
    # A negative scale negates the codes; negating the integers instead gives the same errors.
    sign = np.float32(-1) if negative else np.float32(1)
    exact[:] = np.float32(0)
    for i in range(np.uint64(len(values))):
        exact[i] = np.rint(values[i] * inverse) * sign
    best, least = start, np.int32(0x7FFFFFFF)
    low, high = -top, top - np.float32(1)
    if len(offsets) > 1:
        for offset in offsets:
            bits = start - offset if start > offset else start
            step = max(np.float32(np.rint(as_f32(bits) * inverse)), np.float32(1))
            reciprocal = np.float32(1) / step
            error = np.int32(0)  # at most 128 * 2047^2, as no code is more than half a step above its value
            for i in range(GROUP):
                miss = np.int32(exact[i] - min(max(np.rint(exact[i] * reciprocal), low), high) * step)
                error = np.int32(error + np.int32(miss * miss))
            if error < least:
                least, best = error, bits
    return as_f32(best | (np.uint32(0x80000000) if negative else np.uint32(0)))


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
