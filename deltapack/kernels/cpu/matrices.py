"""Products of matrices with narrow ones, compiled; `deltapack.kernels.reference.matrices` says what each function does.

The narrow matrix has its rows, of a few numbers, in the first-level cache. Eight steps of each sum run between a load and a store of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import as_u32, compiled, loops_on, widen
from deltapack.kernels.layout import Elements, Values
from deltapack.kernels.reference.matrices import PRODUCT_LANES, Matrix, rotate

__all__ = ["difference_times", "symmetric_eigen", "times", "transposed_times"]

_DEEP, _LONG = 32, 64
"""Columns and rows of the piece of a matrix that is turned: it stays in the first-level cache."""

_INFINITE = 0x7F800000
_STEPS = 8 * PRODUCT_LANES
"""Columns whose products are added between a load and a store of a lane."""

symmetric_eigen = compiled(rotate)


def difference_times(base: Elements, source: DType, tuned: Elements, target: DType, right: Values, scale: np.float32) -> Values:
    """See the reference."""
    one, other = loops_on(base, source), loops_on(tuned, target)
    if one is None or other is None:
        return reference.difference_times(base, source, tuned, target, right, scale)
    columns = right.shape[1]
    room = -(-columns // PRODUCT_LANES) * PRODUCT_LANES
    wide = np.zeros((len(right), room), np.float32)
    wide[:, :columns] = right
    out = np.empty((len(base) // columns, len(right)), np.float32)
    largest = _difference_times(one, other, np.uint64(columns), wide, scale, np.zeros(room, np.float32), out)
    return out if largest < _INFINITE else reference.difference_times(base, source, tuned, target, right, scale)


@compiled
def _difference_times(
    base: NDArray[np.uint16], tuned: NDArray[np.uint16], columns: np.uint64, right: Matrix, scale: np.float32, row: Values, out: Matrix
) -> np.uint32:
    """Fill `out`, by a row of differences at a time, and return the bits of the largest exponent; `right` and `row` end in zeros."""
    step, width, largest = np.uint64(_STEPS), np.uint64(PRODUCT_LANES), np.uint32(0)
    lanes = np.zeros(PRODUCT_LANES, np.float32)
    for i in range(np.uint64(len(out))):
        first = i * columns
        for j in range(columns):
            delta = widen(tuned[first + j]) - widen(base[first + j])
            row[j] = delta * scale
            largest = max(largest, as_u32(delta) & np.uint32(0x7F800000))
        for k in range(np.uint64(len(right))):
            own = right[k]
            lanes[:] = np.float32(0)
            start, end = np.uint64(0), np.uint64(len(row))
            while start + step <= end:
                for lane in range(width):
                    place = start + lane
                    total = lanes[lane]
                    for part in range(np.uint64(8)):
                        total += row[place + part * width] * own[place + part * width]
                    lanes[lane] = total
                start += step
            while start < end:
                for lane in range(width):
                    lanes[lane] += row[start + lane] * own[start + lane]
                start += width
            total = np.float32(0)
            for lane in range(width):
                total += lanes[lane]
            out[i, k] = total
    return largest


def times(matrix: Matrix, right: Matrix) -> Matrix:
    """See the reference."""
    out = np.zeros((right.shape[1], len(matrix)), matrix.dtype)
    _times(np.ascontiguousarray(matrix), np.ascontiguousarray(right.T), out, np.empty((_DEEP, _LONG), matrix.dtype))
    return np.ascontiguousarray(out.T)


def transposed_times(matrix: Matrix, right: Matrix) -> Matrix:
    """See the reference."""
    out = np.zeros((matrix.shape[1], right.shape[1]), matrix.dtype)
    _transposed_times(np.ascontiguousarray(matrix), np.ascontiguousarray(right), out)
    return out


@compiled
def _times(matrix: Matrix, right: Matrix, out: Matrix, tile: Matrix) -> None:
    """Make the transposed product, of the transposed right matrix; a small piece of the matrix is turned, so that loops run along rows."""
    deep, long, one, eight = np.uint64(_DEEP), np.uint64(_LONG), np.uint64(1), np.uint64(8)
    rows, columns = np.uint64(matrix.shape[0]), np.uint64(matrix.shape[1])
    for piece in range((rows + long - one) // long):
        first = np.uint64(piece) * long
        many = min(long, rows - first)
        for part in range((columns + deep - one) // deep):
            start = np.uint64(part) * deep
            there = min(deep, columns - start)
            for place in range(many):
                row = matrix[first + place]
                for column in range(there):
                    tile[column, place] = row[start + column]
            for k in range(np.uint64(len(right))):
                total, own = out[k, first : first + many], right[k, start : start + there]
                j = np.uint64(0)
                while j + eight <= there:
                    a, b, c, d = own[j], own[j + one], own[j + np.uint64(2)], own[j + np.uint64(3)]
                    e, f, g, h = own[j + np.uint64(4)], own[j + np.uint64(5)], own[j + np.uint64(6)], own[j + np.uint64(7)]
                    r, s, t, u = tile[j], tile[j + one], tile[j + np.uint64(2)], tile[j + np.uint64(3)]
                    v, w, x, y = tile[j + np.uint64(4)], tile[j + np.uint64(5)], tile[j + np.uint64(6)], tile[j + np.uint64(7)]
                    for i in range(many):
                        half = (((total[i] + a * r[i]) + b * s[i]) + c * t[i]) + d * u[i]
                        total[i] = (((half + e * v[i]) + f * w[i]) + g * x[i]) + h * y[i]
                    j += eight
                while j < there:
                    a, r = own[j], tile[j]
                    for i in range(many):
                        total[i] += a * r[i]
                    j += one


@compiled
def _transposed_times(matrix: Matrix, right: Matrix, out: Matrix) -> None:
    eight, one, width = np.uint64(8), np.uint64(1), np.uint64(right.shape[1])
    i, end = np.uint64(0), np.uint64(len(matrix))
    while i + eight <= end:
        a, b, c, d = matrix[i], matrix[i + one], matrix[i + np.uint64(2)], matrix[i + np.uint64(3)]
        e, f, g, h = matrix[i + np.uint64(4)], matrix[i + np.uint64(5)], matrix[i + np.uint64(6)], matrix[i + np.uint64(7)]
        r, s, t, u = right[i], right[i + one], right[i + np.uint64(2)], right[i + np.uint64(3)]
        v, w, x, y = right[i + np.uint64(4)], right[i + np.uint64(5)], right[i + np.uint64(6)], right[i + np.uint64(7)]
        for j in range(np.uint64(len(out))):
            total = out[j]
            for k in range(width):
                half = (((total[k] + a[j] * r[k]) + b[j] * s[k]) + c[j] * t[k]) + d[j] * u[k]
                total[k] = (((half + e[j] * v[k]) + f[j] * w[k]) + g[j] * x[k]) + h[j] * y[k]
        i += eight
    while i < end:
        a, r = matrix[i], right[i]
        for j in range(np.uint64(len(out))):
            total = out[j]
            for k in range(width):
                total[k] += a[j] * r[k]
        i += one
