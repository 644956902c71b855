"""What the encoder computes of a chunk: differences, their statistics, codes and scales.

A group's scale is the candidate with the least squared error. Errors are summed in integers, on values rounded to 11 bits, so that the
choice does not depend on the order of summation and is the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import rounding
from deltapack.kernels.layout import GROUP, Counts, Elements, Values
from deltapack.kernels.reference.values import group_counts

__all__ = ["compare", "difference", "kept_differences", "pack_codes", "quantize_groups", "same_bits", "settled", "sign_groups"]

Groups = tuple[NDArray[np.int8], NDArray[np.uint16]]
LANES = 64
"""Sums of statistics run in this many lanes, element i in lane i mod 64, so that every backend rounds alike."""
LEVELS = 2047
TINY = np.float32(2.0**-100)
"""A group whose largest magnitude is below this is stored as zeros."""
_PROBE = 4096


def difference(base: Elements, source: DType, tuned: Elements, target: DType, out: Values | None = None) -> Values:
    """Return fine-tuned minus base, `[n] f32`, rounded once (to f64 first, where one is f64); a backend may make it in `out`, `[n]`.

    Equal is equal: NaN less NaN and infinity less infinity are 0 as `settled` says.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if "f64" in (source.name, target.name):
            delta = (rounding.to_f64(tuned, target) - rounding.to_f64(base, source)).astype(np.float32)
        else:
            delta = rounding.to_f32(tuned, target) - rounding.to_f32(base, source)
    return settled(delta, base, source, tuned, target)


def settled(delta: Values, base: Elements, source: DType, tuned: Elements, target: DType) -> Values:
    """Put 0 where a difference is not finite although base and fine-tune are the same; what differs keeps its NaN or infinity.

    The same are elements of equal bits; of two types, where the converted base has the fine-tune's bits, and NaN and NaN, whose bits
    cannot be compared.

    Args:
        delta: `[n] f32` fine-tuned minus base; changed in place.
        base: `[n]` elements of the base.
        source: Their type.
        tuned: `[n]` elements of the fine-tune.
        target: Their type.
    """
    odd = np.flatnonzero(~np.isfinite(delta))
    if len(odd):
        ours, theirs = rounding.convert(base[odd], source, target), tuned[odd]
        ints = f"<u{target.itemsize}"
        same = ours.view(ints) == theirs.view(ints)
        if source != target:
            same |= np.isnan(rounding.to_f64(ours, target)) & np.isnan(rounding.to_f64(theirs, target))
        delta[odd[same]] = 0
    return delta


def kept_differences(base: Elements, source: DType, tuned: Elements, target: DType, positions: NDArray[np.uint32]) -> Values:
    """Return fine-tuned minus base at `positions`, `[nnz] f32`, rounded once."""
    return difference(base[positions], source, tuned[positions], target)


def compare(base: Elements, source: DType, tuned: Elements, target: DType) -> tuple[float, float, bool]:
    """Return the L1 norm of the difference, its largest magnitude (NaN if it holds one), and whether the base gives the fine-tune's bits.

    Args:
        base: `[n]` elements of the base; at least one.
        source: Their type.
        tuned: `[n]` elements of the fine-tune.
        target: Their type.
    """
    magnitude = np.abs(difference(base, source, tuned, target))
    padded = np.zeros(-(-len(magnitude) // LANES) * LANES, np.float64)
    padded[: len(magnitude)] = magnitude
    l1 = 0.0
    for lane in np.add.reduce(padded.reshape(-1, LANES), axis=0).tolist():
        l1 += lane
    # As integers, magnitudes have the order of their values, and every NaN is above infinity.
    largest = magnitude.view(np.uint32).max().view(np.float32)
    return l1, float(largest), same_bits(rounding.convert(base, source, target), tuned)


def same_bits(one: Elements, other: Elements) -> bool:
    """Return whether two arrays of one type hold the same bits; where they differ, the first elements mostly tell."""
    ints = f"<u{one.dtype.itemsize}"
    a, b = one.view(ints), other.view(ints)
    return np.array_equal(a[:_PROBE], b[:_PROBE]) and np.array_equal(a, b)


def quantize_groups(values: Values, counts: Counts, top: int, mantissa_bits: int, candidates: int) -> Groups:
    """Choose scales and round values to codes.

    Args:
        values: `[nnz] f32`, finite.
        counts: `[tiles] int64` of kept elements; groups do not cross tiles.
        top: Codes are in [-top, top - 1].
        mantissa_bits: Candidates for a scale have this many bits of mantissa.
        candidates: How many to try, downwards from the one that reaches the largest magnitude; of equal ones the largest wins.

    Returns:
        Codes `[nnz] int8` and bits of the bf16 scales `[groups] uint16`.
    """
    grouped, used = _grouped(values, counts)
    steps = _least_squares_steps(grouped, top, mantissa_bits, candidates)
    divisor = np.where(steps == 0, np.float32(1), steps)[:, None]
    codes = np.clip(np.rint(grouped / divisor), -top, top - 1)
    codes = np.where(steps[:, None] == 0, np.float32(0), codes)
    return codes[used].astype(np.int8), (steps.view(np.uint32) >> 16).astype(np.uint16)


def sign_groups(values: Values, counts: Counts) -> Groups:
    """Return the signs of values and the scale of least squared error, the mean magnitude, as `quantize_groups` does."""
    grouped, used = _grouped(values, counts)
    largest, _, integers = _integers(grouped)
    mean = np.abs(integers).sum(axis=1) / np.maximum(group_counts(counts), 1) / LEVELS * largest
    codes = np.where(np.signbit(grouped), -1, 1)
    return codes[used].astype(np.int8), (_coarse_up(mean.astype(np.float32), 4) >> 16).astype(np.uint16)


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack codes `[nnz]` of 8, 4, 2 or 1 bits (signs) into bytes, the first in the lowest bits."""
    if bits == 8:
        return codes.view(np.uint8)
    per_byte = 8 // bits
    fields = (codes < 0).view(np.uint8) if bits == 1 else codes.view(np.uint8) & np.uint8((1 << bits) - 1)
    padded = np.zeros(-(-len(fields) // per_byte) * per_byte, np.uint8)
    padded[: len(fields)] = fields
    shifted = padded.reshape(-1, per_byte) << np.arange(0, 8, bits, dtype=np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8)
    return packed


def _grouped(values: Values, counts: Counts) -> tuple[Values, NDArray[np.bool_]]:
    """Return the values in rows of one group, `[groups, 128]` with zeros behind, and which places are used."""
    used = np.arange(GROUP) < group_counts(counts)[:, None]
    grouped = np.zeros(used.shape, np.float32)
    grouped[used] = values
    return grouped, used


def _integers(grouped: Values) -> tuple[Values, Values, NDArray[np.int32]]:
    """Return each group's largest magnitude, the factor to integers, and the values as integers up to 2047."""
    largest = np.abs(grouped).max(axis=1, initial=0)
    alive = largest >= TINY
    inverse = np.where(alive, np.float32(LEVELS) / np.where(alive, largest, np.float32(1)), np.float32(0))
    return np.where(alive, largest, np.float32(0)), inverse, np.rint(grouped * inverse[:, None]).astype(np.int32)


def _least_squares_steps(grouped: Values, top: int, mantissa_bits: int, candidates: int) -> Values:
    largest, inverse, integers = _integers(grouped)
    # The extreme value gets the code -top, the one that has no positive twin: hence the sign of the scale.
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=1)[:, None], axis=1)[:, 0]
    start = _coarse_up(largest / np.float32(top - (0 if top == 128 else 0.5)), mantissa_bits)
    best = start if candidates == 1 else _search(integers, extreme > 0, start, inverse, top, mantissa_bits, candidates)
    return np.where(best == 0, np.uint32(0), best | np.where(extreme > 0, np.uint32(1 << 31), np.uint32(0))).view(np.float32)


def _search(
    integers: NDArray[np.int32],
    negative: NDArray[np.bool_],
    start: NDArray[np.uint32],
    inverse: Values,
    top: int,
    mantissa_bits: int,
    candidates: int,
) -> NDArray[np.uint32]:
    """Return the bits `[groups]` of the magnitude of the best scale; `start` holds those of the largest candidates."""
    sign = np.where(negative, -1, 1).astype(np.int32)[:, None]
    exact = integers.astype(np.float32)
    best_bits, best_error = start, np.full(len(integers), np.iinfo(np.int64).max)
    for candidate in range(candidates):
        offset = np.uint32(candidate << (23 - mantissa_bits))
        bits = np.where(start > offset, start - offset, start)
        step = np.maximum(np.rint(bits.view(np.float32) * inverse), np.float32(1))
        codes = np.rint(exact * (np.float32(1) / step)[:, None]).astype(np.int32) * sign
        error = integers - np.clip(codes, -top, top - 1) * (step.astype(np.int32)[:, None] * sign)
        squared = np.einsum("ij,ij->i", error, error, dtype=np.int64)
        better = squared < best_error
        best_bits, best_error = np.where(better, bits, best_bits), np.where(better, squared, best_error)
    return best_bits


def _coarse_up(values: Values, mantissa_bits: int) -> NDArray[np.uint32]:
    """Round positive f32 up to `mantissa_bits` bits of mantissa and return the bits."""
    drop = np.uint32((1 << (23 - mantissa_bits)) - 1)
    largest_finite = np.uint32(0x7F800000) - drop - np.uint32(1)
    bits: NDArray[np.uint32] = np.minimum((values.astype(np.float32).view(np.uint32) + drop) & ~drop, largest_finite)
    return bits
