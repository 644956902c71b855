"""What the encoder computes of a chunk: differences, their statistics, codes and scales.

A group's codes are those, of several widths, that point most nearly to where its values do, and its scale gives them the gain 1. Sums
are of integers, on values rounded to 11 bits, so that the choice does not depend on the order of summation and is the same everywhere.
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
        mantissa_bits: Scales have this many bits of mantissa.
        candidates: How many widths of a code to try, downwards from the one that reaches the largest magnitude; of equally good ones the
            largest wins. With one the width itself is the scale: what it rounds off needs no gain.

    Returns:
        Codes `[nnz] int8` and bits of the bf16 scales `[groups] uint16`.
    """
    grouped, used = _grouped(values, counts)
    # The extreme value gets the code -top, the one that has no positive twin: hence the sign of the scale.
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=1)[:, None], axis=1)[:, 0]
    sign = np.where(extreme > 0, np.uint32(1 << 31), np.uint32(0))
    if candidates == 1:
        codes, bits = _reaching(grouped, sign, top, mantissa_bits)
    else:
        codes, bits = _projected(grouped, sign, widths(top, candidates), top, mantissa_bits)
    return codes[used].astype(np.int8), (bits >> 16).astype(np.uint16)


def sign_groups(values: Values, counts: Counts) -> Groups:
    """Return the signs of values and the scale of gain 1, as `quantize_groups` does."""
    grouped, used = _grouped(values, counts)
    largest, integers = _integers(grouped)
    codes = np.where(np.signbit(grouped), -1, 1)
    bits = scale_of_gain_one(np.square(integers, dtype=np.int64).sum(axis=1), np.abs(integers).sum(axis=1), largest, 4)
    return codes[used].astype(np.int8), (bits >> 16).astype(np.uint16)


def widths(top: int, candidates: int) -> Values:
    """Return the widths of a code to try, `[candidates] f32`, in units in which the largest magnitude is 2047; eight to an octave."""
    shares = (np.uint32(0x3F800000) - (np.arange(candidates, dtype=np.uint32) << np.uint32(20))).view(np.float32)
    tried: Values = np.float32(LEVELS) / np.float32(top - 0.5) * shares
    return tried


def scale_of_gain_one(squares: NDArray[np.int64], products: NDArray[np.int64], largest: Values, mantissa_bits: int) -> NDArray[np.uint32]:
    """Return the bits of the scales with which codes hold neither more nor less of their values than there is, `[groups] uint32`.

    Codes C that stand for values d with the scale s have the gain <sC, d> / <d, d>. The scale of least squared error makes it less than
    1, for it shrinks where codes are uncertain; so a restored difference would be too small (docs/design.md, section Values).

    Args:
        squares: <d, d> of each group.
        products: <C, d> of each group; 0 gives the scale 0.
        largest: What 2047 stands for, above.
        mantissa_bits: Scales are rounded to so many, to the nearest, as any other rule would be a gain of its own.
    """
    wide = squares / np.maximum(products, 1) * (largest.astype(np.float64) / LEVELS)
    bits = _coarse(wide.astype(np.float32), mantissa_bits, np.uint32(1 << (22 - mantissa_bits)))
    return np.where(products == 0, np.uint32(0), bits)


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


def _integers(grouped: Values) -> tuple[Values, NDArray[np.int32]]:
    """Return each group's largest magnitude, and the values as integers up to 2047."""
    largest = np.abs(grouped).max(axis=1, initial=0)
    alive = largest >= TINY
    inverse = np.where(alive, np.float32(LEVELS) / np.where(alive, largest, np.float32(1)), np.float32(0))
    return np.where(alive, largest, np.float32(0)), np.rint(grouped * inverse[:, None]).astype(np.int32)


def _reaching(grouped: Values, sign: NDArray[np.uint32], top: int, mantissa_bits: int) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Return codes and bits of the scales that reach the largest magnitude."""
    largest, _ = _integers(grouped)
    bits = _coarse(largest / np.float32(top), mantissa_bits, np.uint32((1 << (23 - mantissa_bits)) - 1))
    steps = (bits | sign).view(np.float32)[:, None]
    dead = largest == 0
    codes = np.clip(np.rint(grouped / np.where(dead[:, None], np.float32(1), steps)), -top, top - 1)
    return np.where(dead[:, None], np.float32(0), codes).astype(np.int32), np.where(dead, np.uint32(0), bits | sign)


def _projected(
    grouped: Values, sign: NDArray[np.uint32], tried: Values, top: int, mantissa_bits: int
) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Return the codes that point most nearly to where the values do, and the bits of the scales that give them the gain 1."""
    largest, integers = _integers(grouped)
    turned = np.where(sign[:, None] != 0, -integers, integers)
    exact, best = turned.astype(np.float32), np.zeros_like(turned)
    products, powers = np.zeros(len(turned), np.int64), np.ones(len(turned), np.int64)
    for width in tried:
        codes = np.clip(np.rint(exact * (np.float32(1) / width)), -top, top - 1).astype(np.int32)
        product, power = (np.einsum("ij,ij->i", codes, other, dtype=np.int64) for other in (turned, codes))
        # The squared cosine is product^2 / power; each side stays below 2^57.
        better = product * product * powers > products * products * power
        best = np.where(better[:, None], codes, best)
        products, powers = np.where(better, product, products), np.where(better, power, powers)
    bits = scale_of_gain_one(np.einsum("ij,ij->i", turned, turned, dtype=np.int64), products, largest, mantissa_bits)
    return best, np.where(bits == 0, bits, bits | sign)


def _coarse(values: Values, mantissa_bits: int, bias: np.uint32) -> NDArray[np.uint32]:
    """Round positive f32 to `mantissa_bits` bits of mantissa and return the bits; what is added before the rest is cut off says how."""
    drop = np.uint32((1 << (23 - mantissa_bits)) - 1)
    largest_finite = np.uint32(0x7F800000) - drop - np.uint32(1)
    bits: NDArray[np.uint32] = np.minimum((values.view(np.uint32) + bias) & ~drop, largest_finite)
    return bits
