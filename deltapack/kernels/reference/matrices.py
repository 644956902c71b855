"""Products of matrices with narrow ones, and eigenvectors of small ones: the same bits on every machine, as sums run in one order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels.layout import Elements, Values
from deltapack.kernels.reference.encoding import difference

__all__ = ["PRODUCT_LANES", "Matrix", "difference_times", "rotate", "symmetric_eigen", "times", "transposed_times"]

Matrix = NDArray[Any]
"""Of floats."""
_SWEEPS, _SMALL = 30, 1e-15
"""Sweeps over all pairs, of which it never takes more than about ten, and what is left beside the diagonal when it ends."""


PRODUCT_LANES = 16
"""Sums of `difference_times` run in this many lanes, column j in lane j mod 16, so that a row is read once and in order."""


def difference_times(base: Elements, source: DType, tuned: Elements, target: DType, right: Values, scale: np.float32) -> Values:
    """Return `(tuned - base) * scale @ right.T`, `[n, k] f32`; each sum runs over columns in order, in 16 lanes, which are then added up.

    Args:
        base: Whole rows of the base, `[n * columns]`.
        source: Their type.
        tuned: The same rows of the fine-tune.
        target: Their type.
        right: `[k, columns] f32`.
        scale: What differences are multiplied with.
    """
    columns = right.shape[1]
    spare = ((0, 0), (0, -columns % PRODUCT_LANES))
    delta = np.pad(difference(base, source, tuned, target).reshape(-1, columns), spare)
    out = np.zeros((len(delta), len(right)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        delta *= scale
        for k, row in enumerate(np.pad(right, spare)):
            lanes = np.zeros((len(delta), PRODUCT_LANES), np.float32)
            for start in range(0, delta.shape[1], PRODUCT_LANES):
                lanes += delta[:, start : start + PRODUCT_LANES] * row[start : start + PRODUCT_LANES]
            for lane in range(PRODUCT_LANES):
                out[:, k] += lanes[:, lane]
    return out


def times(matrix: Matrix, right: Matrix) -> Matrix:
    """Return `matrix @ right` of two matrices of one type, `[n, m]` and `[m, k]`; each sum runs over m in order, every step rounded."""
    out = np.zeros((len(matrix), right.shape[1]), matrix.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for j in range(len(right)):
            out += matrix[:, j : j + 1] * right[j]
    return out


def transposed_times(matrix: Matrix, right: Matrix) -> Matrix:
    """Return `matrix.T @ right` of two matrices of one type, `[n, m]` and `[n, k]`; each sum runs over n in order, every step rounded."""
    out = np.zeros((matrix.shape[1], right.shape[1]), matrix.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(len(matrix)):
            out += matrix[i][:, None] * right[i]
    return out


def symmetric_eigen(matrix: NDArray[np.float64], vectors: NDArray[np.float64]) -> None:
    """Turn a symmetric matrix into its eigenvalues, by Jacobi's rotations.

    Args:
        matrix: `[k, k] f64`; its diagonal becomes the eigenvalues, in any order.
        vectors: `[k, k] f64`, the identity; its columns become the eigenvectors.
    """
    rows, turned = matrix.tolist(), vectors.tolist()  # Python's own floats: the same arithmetic as numpy's, four times faster one by one
    rotate(rows, turned)
    matrix[:], vectors[:] = rows, turned


def rotate(matrix: Any, vectors: Any) -> None:
    """Do what `symmetric_eigen` does, to arrays or to lists of rows."""
    size = len(matrix)
    for _ in range(_SWEEPS):
        beside, diagonal = 0.0, 0.0
        for p in range(size):
            diagonal += matrix[p][p] * matrix[p][p]
            for q in range(p + 1, size):
                beside += matrix[p][q] * matrix[p][q]
        if not beside > _SMALL * _SMALL * diagonal:
            return
        for p in range(size - 1):
            for q in range(p + 1, size):
                if matrix[p][q] == 0.0:
                    continue
                theta = (matrix[q][q] - matrix[p][p]) / (2.0 * matrix[p][q])
                root = math.sqrt(theta * theta + 1.0)
                tangent = 1.0 / (theta + root) if theta >= 0.0 else 1.0 / (theta - root)
                cosine = 1.0 / math.sqrt(tangent * tangent + 1.0)
                sine = tangent * cosine
                for i in range(size):
                    row, turned = matrix[i], vectors[i]
                    one, other = row[p], row[q]
                    row[p] = cosine * one - sine * other
                    row[q] = sine * one + cosine * other
                    one, other = turned[p], turned[q]
                    turned[p] = cosine * one - sine * other
                    turned[q] = sine * one + cosine * other
                upper, lower = matrix[p], matrix[q]
                for i in range(size):
                    one, other = upper[i], lower[i]
                    upper[i] = cosine * one - sine * other
                    lower[i] = sine * one + cosine * other
