"""Formulas over the differences of several packs, compiled; `deltapack.kernels.reference.blending` says what each function does.

The loops work on blocks of elements whose sums stay in the cache: what the packs keep of a block is scattered to it, pack by pack, and a
loop over the block finishes it. A sum that begins at +0.0 never becomes -0.0, so -0.0 marks elements that no pack keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.cpu.adding import add_in_place
from deltapack.kernels.cpu.bits import addresses, array_at, as_u32, compiled, loops_on, narrow, widen
from deltapack.kernels.formulas import Election, Formula, Sharing, WeightedSum
from deltapack.kernels.layout import Elements, Positions, Sparse, Values
from deltapack.kernels.reference.blending import scaled

__all__ = ["add_blended", "blend"]

_BLOCK = 4096
_UNTOUCHED = np.float32(-0.0)
_UNTOUCHED_BITS = np.uint32(0x80000000)
_NO_ELEMENTS = np.zeros(0, np.uint16)
"""Of the most common type, so that blending alone needs no other compiled loop."""
_Addresses = NDArray[np.uint64]
_Lengths = NDArray[np.int64]


def _raw(parts: Sequence[Sparse]) -> tuple[list[Sparse], _Addresses, _Addresses, _Lengths]:
    """Return the parts as contiguous arrays, which must outlive their addresses, and where they lie."""
    arrays = [Sparse(np.ascontiguousarray(positions), np.ascontiguousarray(values)) for positions, values in parts]
    positions_at, values_at = (addresses([part[side] for part in arrays]) for side in range(2))
    return arrays, positions_at, values_at, np.array([len(positions) for positions, _ in arrays], np.int64)


def blend(length: int, parts: Sequence[Sparse], formula: Formula) -> Sparse:
    """See the reference."""
    if isinstance(formula, WeightedSum):
        return reference.blend(length, parts, formula)
    most = min(length, sum(len(positions) for positions, _ in parts)) + 1
    union, totals = np.empty(most, np.uint32), np.empty(most, np.float32)
    count = _run(_NO_ELEMENTS, length, parts, formula, union, totals)
    return Sparse(union[:count], totals[:count])


def add_blended(elements: Elements, dtype: DType, parts: Sequence[Sparse], formula: Formula) -> None:
    """See the reference."""
    target = loops_on(elements, dtype)
    if isinstance(formula, WeightedSum):
        add_in_place(elements, dtype, scaled(parts, formula))
    elif target is None or not len(elements):
        reference.add_in_place(elements, dtype, [blend(len(elements), parts, formula)])
    else:
        _run(target, len(elements), parts, formula, np.empty(0, np.uint32), np.empty(0, np.float32))


def _run(elements: Elements, length: int, parts: Sequence[Sparse], formula: Election | Sharing, union: Positions, totals: Values) -> int:
    _arrays, *where = _raw(parts)
    out = np.uint64(length), elements, union, totals
    if isinstance(formula, Sharing):
        return int(_share(*where, np.float32(formula.epsilon), formula.alone, *out))
    divided = formula.divisor_weights is not None
    in_divisor = formula.sum_weights if formula.divisor_weights is None else formula.divisor_weights
    weights = np.stack([formula.vote_weights, formula.sum_weights, in_divisor])
    limits = np.float32(formula.floor), np.float32(formula.scale)
    return int(_elect(*where, weights, formula.zero_is_positive, divided, *limits, *out))


@compiled
def _finish(
    elements: Elements, begin: np.uint64, totals: Values, count: np.uint64, union: Positions, results: Values, found: np.uint64
) -> np.uint64:
    """Add the totals of a block to the elements or, where there are none, list those that are not untouched."""
    if len(elements):
        for i in range(count):
            old = elements[begin + i]
            new = narrow(widen(old) + totals[i], old)
            elements[begin + i] = old if as_u32(totals[i]) == _UNTOUCHED_BITS else new
    else:
        for i in range(count):
            union[found] = np.uint32(begin + i)  # without a branch: the next one overwrites what is untouched
            results[found] = totals[i]
            found += np.uint64(as_u32(totals[i]) != _UNTOUCHED_BITS)
    return found


@compiled
def _elect(
    positions_at: _Addresses,
    values_at: _Addresses,
    lengths: _Lengths,
    weights: Values,
    zero_is_positive: bool,
    divided: bool,
    floor: np.float32,
    scale: np.float32,
    length: np.uint64,
    elements: Elements,
    union: Positions,
    results: Values,
) -> np.uint64:
    packs, zero, one = len(lengths), np.float32(0), np.float32(1)
    sign, totals = np.zeros(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    sums = np.zeros(2 * _BLOCK, np.float32)  # sum and divisor of each element side by side: one access reaches both
    second = np.uint64(1)
    sums[::2] = _UNTOUCHED
    starts, ends = np.zeros(packs, np.int64), np.zeros(packs, np.int64)
    found, begin = np.uint64(0), np.uint64(0)
    while begin < length:
        count = min(np.uint64(_BLOCK), length - begin)
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], zero)
            vote, at, end = weights[0, pack], np.uint64(starts[pack]), np.uint64(lengths[pack])
            while at < end and np.uint64(positions[at]) < begin + count:
                sign[np.uint64(positions[at]) - begin] += values[at] * vote
                at += np.uint64(1)
            ends[pack] = at
        for i in range(count):
            positive = sign[i] >= zero if zero_is_positive else sign[i] > zero
            sign[i] = one if positive else -one
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], zero)
            vote, weight, counted = weights[0, pack], weights[1, pack], weights[2, pack]
            for i in range(np.uint64(starts[pack]), np.uint64(ends[pack])):
                place = np.uint64(positions[i]) - begin
                agrees = values[i] * vote * sign[place] > zero
                first = np.uint64(2) * place
                sums[first] = (sums[first] + zero) + (values[i] * weight if agrees else zero)
                sums[first + second] = (sums[first + second] + zero) + (counted if agrees else zero)
        for i in range(count):
            mixed, divisor = sums[np.uint64(2) * i], sums[np.uint64(2) * i + second]
            limited = max(divisor, floor) if floor > zero else (one if divisor == zero else divisor)
            total = (mixed / limited if divided else mixed) * scale + zero
            totals[i] = mixed if as_u32(mixed) == _UNTOUCHED_BITS else total
            sign[i] = zero
            sums[np.uint64(2) * i] = _UNTOUCHED
            sums[np.uint64(2) * i + second] = zero
        found = _finish(elements, begin, totals, count, union, results, found)
        starts[:] = ends
        begin += count
    return found


@compiled
def _share(
    positions_at: _Addresses,
    values_at: _Addresses,
    lengths: _Lengths,
    epsilon: np.float32,
    alone: Values,
    length: np.uint64,
    elements: Elements,
    union: Positions,
    results: Values,
) -> np.uint64:
    packs, zero, one = len(lengths), np.float32(0), np.float32(1)
    changes, mixed = np.zeros(_BLOCK, np.float32), np.full(_BLOCK, _UNTOUCHED, np.float32)
    starts, ends = np.zeros(packs, np.int64), np.zeros(packs, np.int64)
    found, begin = np.uint64(0), np.uint64(0)
    while begin < length:
        count = min(np.uint64(_BLOCK), length - begin)
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], zero)
            at, end = np.uint64(starts[pack]), np.uint64(lengths[pack])
            while at < end and np.uint64(positions[at]) < begin + count:
                changes[np.uint64(positions[at]) - begin] += one if abs(values[at]) > epsilon else zero
                at += np.uint64(1)
            ends[pack] = at
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], zero)
            factor = alone[pack]
            for i in range(np.uint64(starts[pack]), np.uint64(ends[pack])):
                place = np.uint64(positions[i]) - begin
                # Without a branch that depends on the data: dividing by one and multiplying with one change no bit.
                delta = values[i] if abs(values[i]) > epsilon else zero
                part = delta * (factor if changes[place] == one else one) / max(changes[place], one)
                mixed[place] = (mixed[place] + zero) + part
        found = _finish(elements, begin, mixed, count, union, results, found)
        changes[:] = zero
        mixed[:] = _UNTOUCHED
        starts[:] = ends
        begin += count
    return found
