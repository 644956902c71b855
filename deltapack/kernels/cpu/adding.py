"""Sparse terms added to a base, compiled; `deltapack.kernels.reference.adding` says what each function does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import addresses, array_at, as_u32, compiled, exponent, loops_on, narrow, prefetch, widen
from deltapack.kernels.layout import Elements, Positions, Sparse, Values

__all__ = ["add_in_place", "add_sparse", "are_finite", "sum_terms"]

add_sparse = reference.add_sparse
sum_terms = reference.sum_terms
_BLOCK = 1024
_BLOCK_DENSE = 8192
_AHEAD = 256
_INFINITE = 0x7F800000


def add_in_place(elements: Elements, dtype: DType, terms: Sequence[Sparse]) -> None:
    """See the reference."""
    target = loops_on(elements, dtype)
    if target is None:
        reference.add_in_place(elements, dtype, terms)
    elif len(terms) == 1:
        _add_one(target, *terms[0])
    else:
        parts = [(np.ascontiguousarray(positions), np.ascontiguousarray(values)) for positions, values in terms]
        where = [addresses(arrays) for arrays in zip(*parts, strict=True)]
        _add_many(target, *where, np.array([len(positions) for positions, _ in parts], np.int64))


def are_finite(elements: Elements, dtype: DType, positions: Positions) -> bool:
    """See the reference."""
    target = loops_on(elements, dtype)
    if target is None:
        return reference.are_finite(elements, dtype, positions)
    if len(positions) == len(elements):  # all of them, as positions rise
        return bool(_largest_exponent_of_all(target) < _INFINITE)
    return bool(_largest_exponent(target, positions) < _INFINITE)


@compiled
def _largest_exponent(elements: NDArray[np.uint16], positions: Positions) -> np.uint32:
    largest = np.uint32(0)
    for i in range(np.uint64(len(positions))):
        largest = max(largest, exponent(elements[np.uint64(positions[i])]))
    return largest


@compiled
def _largest_exponent_of_all(elements: NDArray[np.uint16]) -> np.uint32:
    largest = np.uint32(0)
    for i in range(np.uint64(len(elements))):
        largest = max(largest, exponent(elements[i]))
    return largest


@compiled
def _add_one(elements: NDArray[np.uint16], positions: Positions, values: Values) -> None:
    # Gathering, adding and scattering apart is faster than one loop: the middle one vectorises, and loads do not wait for stores.
    kept = np.empty(_BLOCK, elements.dtype)
    start, end = np.uint64(0), np.uint64(len(positions))
    while start < end:
        count = min(np.uint64(_BLOCK), end - start)
        for i in range(count):
            prefetch(elements, np.uint64(positions[min(start + i + np.uint64(_AHEAD), end - np.uint64(1))]))
            kept[i] = elements[np.uint64(positions[start + i])]
        for i in range(count):
            # The sum of terms begins at +0.0, so that a value of -0.0 turns a base of -0.0 into +0.0.
            kept[i] = narrow(widen(kept[i]) + (values[start + i] + np.float32(0)), kept[i])
        for i in range(count):
            elements[np.uint64(positions[start + i])] = kept[i]
        start += count


@compiled
def _add_many(
    elements: NDArray[np.uint16],
    positions_at: NDArray[np.uint64],
    values_at: NDArray[np.uint64],
    lengths: NDArray[np.int64],
) -> None:
    """Add up all terms for a block of elements, then add the sums to the block.

    A sum that begins at +0.0 never becomes -0.0, so -0.0 marks elements that no term keeps.
    """
    untouched = np.float32(-0.0)
    total = np.full(_BLOCK_DENSE, untouched, np.float32)
    done = np.zeros(len(lengths), np.uint64)
    length = np.uint64(len(elements))
    begin = np.uint64(0)
    while begin < length:
        count = min(np.uint64(_BLOCK_DENSE), length - begin)
        for term in range(len(lengths)):
            positions = array_at(positions_at[term], lengths[term], np.uint32(0))
            values = array_at(values_at[term], lengths[term], np.float32(0))
            i, end = done[term], np.uint64(lengths[term])
            while i < end and np.uint64(positions[i]) < begin + count:
                place = np.uint64(positions[i]) - begin
                total[place] = (total[place] + np.float32(0)) + values[i]
                i += np.uint64(1)
            done[term] = i
        for i in range(count):
            old = elements[begin + i]
            new = narrow(widen(old) + total[i], old)
            elements[begin + i] = old if as_u32(total[i]) == np.uint32(0x80000000) else new
            total[i] = untouched
        begin += count
