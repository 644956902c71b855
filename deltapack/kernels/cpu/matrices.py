"""Products of matrices with narrow ones, compiled; `deltapack.kernels.reference.matrices` says what each function does.

The narrow matrix has its rows, of a few numbers, in the first-level cache. Eight steps of each sum run between a load and a store of it.
"""

from __future__ import annotations

import numpy as np

from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.reference.matrices import Matrix

__all__ = ["symmetric_eigen", "times", "transposed_times"]

symmetric_eigen = compiled(reference.symmetric_eigen)


def times(matrix: Matrix, right: Matrix) -> Matrix:
    """See the reference."""
    out = np.zeros((len(matrix), right.shape[1]), matrix.dtype)
    _times(np.ascontiguousarray(matrix), np.ascontiguousarray(right), out)
    return out


def transposed_times(matrix: Matrix, right: Matrix) -> Matrix:
    """See the reference."""
    out = np.zeros((matrix.shape[1], right.shape[1]), matrix.dtype)
    _transposed_times(np.ascontiguousarray(matrix), np.ascontiguousarray(right), out)
    return out


@compiled
def _times(matrix: Matrix, right: Matrix, out: Matrix) -> None:
    eight, one, width = np.uint64(8), np.uint64(1), np.uint64(right.shape[1])
    for i in range(np.uint64(len(matrix))):
        row, total = matrix[i], out[i]
        j, end = np.uint64(0), np.uint64(len(right))
        while j + eight <= end:
            a, b, c, d = row[j], row[j + one], row[j + np.uint64(2)], row[j + np.uint64(3)]
            e, f, g, h = row[j + np.uint64(4)], row[j + np.uint64(5)], row[j + np.uint64(6)], row[j + np.uint64(7)]
            r, s, t, u = right[j], right[j + one], right[j + np.uint64(2)], right[j + np.uint64(3)]
            v, w, x, y = right[j + np.uint64(4)], right[j + np.uint64(5)], right[j + np.uint64(6)], right[j + np.uint64(7)]
            for k in range(width):
                half = (((total[k] + a * r[k]) + b * s[k]) + c * t[k]) + d * u[k]
                total[k] = (((half + e * v[k]) + f * w[k]) + g * x[k]) + h * y[k]
            j += eight
        while j < end:
            a, r = row[j], right[j]
            for k in range(width):
                total[k] += a * r[k]
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
