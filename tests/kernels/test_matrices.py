"""Products and eigenvectors by every backend: sums in order, the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backends import BACKENDS, load, unsigned

from deltapack.dtypes import BY_NAME
from deltapack.kernels import Backend, reference, rounding


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.sampled_from(["f4", "f8"]), st.integers(0, 1 << 30))
def test_products_are_sums_in_order(backend: str, rows: int, columns: int, width: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, right, left = (rng.normal(0, 1, shape).astype(kind) for shape in ((rows, columns), (columns, width), (rows, width)))
    expected, transposed = np.zeros((rows, width), kind), np.zeros((columns, width), kind)
    for i in range(rows):
        for j in range(columns):
            for k in range(width):
                expected[i, k] = expected[i, k] + matrix[i, j] * right[j, k]
                transposed[j, k] = transposed[j, k] + matrix[i, j] * left[i, k]
    loops = load(backend)
    assert unsigned(loops.times(matrix, right)).tolist() == unsigned(expected).tolist()
    assert unsigned(loops.transposed_times(matrix, left)).tolist() == unsigned(transposed).tolist()
    assert unsigned(loops.times(matrix.T, left)).tolist() == unsigned(transposed).tolist()


@pytest.mark.parametrize("size", [1, 2, 5, 16, 33])
def test_eigenvectors(loops: Backend, size: int) -> None:
    rng = np.random.default_rng(size)
    half = rng.normal(0, 1, (size, size)) * 10.0 ** rng.integers(-6, 3, size)
    matrix = half @ half.T
    values, vectors = matrix.copy(), np.eye(size)
    loops.symmetric_eigen(values, vectors)
    assert np.abs(vectors @ np.diag(np.diag(values)) @ vectors.T - matrix).max() <= 1e-12 * np.abs(matrix).max()
    assert np.abs(vectors.T @ vectors - np.eye(size)).max() < 1e-12
    assert np.abs(np.sort(np.diag(values)) - np.linalg.eigvalsh(matrix)).max() <= 1e-12 * np.abs(matrix).max()


def test_every_backend_finds_the_same_eigenvectors() -> None:
    half = np.random.default_rng(0).normal(0, 1, (16, 16))
    found = []
    for backend in BACKENDS:
        values, vectors = half @ half.T, np.eye(16)
        load(backend).symmetric_eigen(values, vectors)
        found.append((values.tobytes(), vectors.tobytes()))
    assert found[0] == found[-1]


def test_nothing_is_nothing(loops: Backend) -> None:
    values, vectors = np.zeros((4, 4)), np.eye(4)
    loops.symmetric_eigen(values, vectors)
    assert not values.any()
    assert loops.times(np.zeros((3, 2), np.float32), np.zeros((2, 0), np.float32)).shape == (3, 0)


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8_e4m3fn"])
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 300), st.integers(1, 9), st.sampled_from([1.0, 2.0**40, 2.0**-40]), st.integers(0, 1 << 30))
def test_products_of_differences(name: str, rows: int, columns: int, rank: int, scale: float, seed: int) -> None:
    dtype, rng = BY_NAME[name], np.random.default_rng(seed)
    base, tuned = (rng.integers(0, 256, rows * columns * dtype.itemsize, np.uint8).view(dtype.storage) for _ in range(2))
    tuned[::3] = base[::3]  # NaN less the same NaN is 0
    if seed % 2:
        base, tuned = (rounding.from_f64(rng.normal(0, 1, rows * columns), dtype) for _ in range(2))
    right, size = rng.normal(0, 1, (rank, columns)).astype(np.float32), np.float32(scale)
    expected = np.zeros((rows, rank), np.float32)
    delta = reference.difference(base, dtype, tuned, dtype).reshape(rows, columns)
    with np.errstate(all="ignore"):
        delta = delta * size
        for row in range(rows):
            for k in range(rank):
                lanes = [np.float32(0)] * 16
                for column in range(columns):
                    lanes[column % 16] += delta[row, column] * right[k, column]
                for lane in lanes:
                    expected[row, k] += lane
    nan = np.isnan(expected)
    for backend in BACKENDS:
        found = load(backend).difference_times(base, dtype, tuned, dtype, right, size)
        assert np.array_equal(np.isnan(found), nan), backend
        assert unsigned(found[~nan]).tolist() == unsigned(expected[~nan]).tolist(), backend
