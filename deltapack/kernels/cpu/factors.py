"""Values of products of factors, compiled; `deltapack.kernels.reference.factors` says what each function does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import as_u32, compiled, loops_on, narrow, widen
from deltapack.kernels.cpu.encoding import kept_differences
from deltapack.kernels.layout import Elements, Positions, Sparse, Values
from deltapack.kernels.product import Product

__all__ = ["add_product", "kept_residuals", "product_at", "product_values"]

_BLOCK = 4096
_DENSE = 10
"""Elements of which at least one must be kept, or to make every value of a product in order takes longer than those of the kept ones."""
_INFINITE = 0x7F800000


def product_values(product: Product, out: Values | None = None) -> Values:
    """See the reference."""
    values = np.empty(product.length, np.float32) if out is None else out[: product.length]
    _fill(*_arguments(product), np.uint64(product.start), values)
    return values


def product_at(product: Product, positions: Positions) -> Values:
    """See the reference."""
    values = np.empty(len(positions), np.float32)
    left, right = (np.ascontiguousarray(factor.T) for factor in (product.left, product.right))
    _fill_at(left, right, np.uint64(product.start), np.ascontiguousarray(positions), values)
    return values


def kept_residuals(base: Elements, source: DType, tuned: Elements, target: DType, positions: Positions, product: Product) -> Values:
    """See the reference."""
    one, other = loops_on(base, source), loops_on(tuned, target)
    if one is not None and other is not None and len(positions) * _DENSE >= len(base):
        values = np.empty(len(positions), np.float32)
        largest = _leave(one, other, *_arguments(product), np.uint64(product.start), np.ascontiguousarray(positions), values)
        if largest < _INFINITE:
            return values
    with np.errstate(over="ignore", invalid="ignore"):
        left: Values = kept_differences(base, source, tuned, target, positions) - product_at(product, positions)
    return left


def add_product(elements: Elements, dtype: DType, product: Product, kept: Sparse) -> None:
    """See the reference."""
    target = loops_on(elements, dtype)
    if target is None:
        reference.add_product(elements, dtype, product, kept)
    else:
        _add(target, *_arguments(product), np.uint64(product.start), *map(np.ascontiguousarray, kept))


def _arguments(product: Product) -> tuple[Values, Values]:
    return np.ascontiguousarray(product.left), np.ascontiguousarray(product.right)


@compiled
def _fill(left: Values, right: Values, start: np.uint64, values: Values) -> None:
    """Fill `values` with those from element `start` on, counted from the first row, a row at a time: its loops run over columns."""
    columns, rank, one = np.uint64(right.shape[1]), np.uint64(len(left)), np.uint64(1)
    row, column = start // columns, start % columns
    at, end = np.uint64(0), np.uint64(len(values))
    while at < end:
        size = min(end - at, columns - column)
        out = values[at : at + size]
        u, v = left[np.uint64(0), row], right[np.uint64(0), column : column + size]
        for i in range(size):
            out[i] = u * v[i]
        k = one
        while k + np.uint64(3) < rank + one:  # three at once: of each value, two loads and stores less
            u, v = left[k, row], right[k, column : column + size]
            u2, v2 = left[k + one, row], right[k + one, column : column + size]
            u3, v3 = left[k + np.uint64(2), row], right[k + np.uint64(2), column : column + size]
            for i in range(size):
                out[i] = ((out[i] + u * v[i]) + u2 * v2[i]) + u3 * v3[i]
            k += np.uint64(3)
        while k < rank:
            u, v = left[k, row], right[k, column : column + size]
            for i in range(size):
                out[i] += u * v[i]
            k += one
        at += size
        row += one
        column = np.uint64(0)


@compiled
def _fill_at(left: Values, right: Values, start: np.uint64, positions: Positions, values: Values) -> None:
    """Fill `values` with those at positions; both factors are turned, so that the numbers of a row or column lie together."""
    columns, rank = np.uint64(len(right)), np.uint64(left.shape[1])
    row, first = np.uint64(0), np.uint64(0)
    for i in range(np.uint64(len(positions))):
        place = start + np.uint64(positions[i])
        if place - first >= columns:  # as it is, too, where it lies before: there are no numbers below 0
            row = place // columns
            first = row * columns
        u, v = left[row], right[place - first]
        total = u[np.uint64(0)] * v[np.uint64(0)]
        for k in range(np.uint64(1), rank):
            total += u[k] * v[k]
        values[i] = total


@compiled
def _add(elements: NDArray[np.uint16], left: Values, right: Values, start: np.uint64, positions: Positions, values: Values) -> None:
    """Add up both terms for a block of elements, then add the sums to the block. They begin at +0.0, so a value of -0.0 becomes that."""
    total = np.empty(_BLOCK, np.float32)
    begin, length = np.uint64(0), np.uint64(len(elements))
    kept, kept_end = np.uint64(0), np.uint64(len(positions))
    while begin < length:
        count = min(np.uint64(_BLOCK), length - begin)
        _fill(left, right, start + begin, total[:count])
        while kept < kept_end and np.uint64(positions[kept]) < begin + count:
            place = np.uint64(positions[kept]) - begin
            total[place] = (total[place] + np.float32(0)) + values[kept]
            kept += np.uint64(1)
        for i in range(count):
            elements[begin + i] = narrow(widen(elements[begin + i]) + (total[i] + np.float32(0)), elements[begin + i])
        begin += count


@compiled
def _leave(
    base: NDArray[np.uint16],
    tuned: NDArray[np.uint16],
    left: Values,
    right: Values,
    start: np.uint64,
    positions: Positions,
    values: Values,
) -> np.uint32:
    """Fill `values` with what the product leaves at positions, and return the bits of the largest exponent of all differences."""
    rest = np.empty(_BLOCK, np.float32)
    begin, length, largest = np.uint64(0), np.uint64(len(base)), np.uint32(0)
    kept, kept_end = np.uint64(0), np.uint64(len(positions))
    while begin < length:
        count = min(np.uint64(_BLOCK), length - begin)
        _fill(left, right, start + begin, rest[:count])
        for i in range(count):
            delta = widen(tuned[begin + i]) - widen(base[begin + i])
            largest = max(largest, as_u32(delta) & np.uint32(0x7F800000))
            rest[i] = delta - rest[i]
        while kept < kept_end and np.uint64(positions[kept]) < begin + count:
            values[kept] = rest[np.uint64(positions[kept]) - begin]
            kept += np.uint64(1)
        begin += count
    return largest
