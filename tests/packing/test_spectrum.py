"""Singular values and directions by passes over a difference, against those of numpy; and factors made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.backends import load

from deltapack import kernels
from deltapack.codecs.factors import Factors
from deltapack.dtypes import BY_NAME
from deltapack.format.digest import CHUNK
from deltapack.packing.directions import Directions, directions_of
from deltapack.packing.factoring import quantise_factors
from deltapack.packing.spectrum import Spectrum, spectrum_of

F32 = NDArray[np.float32]


def low_rank(rows: int, columns: int, sizes: list[float], noise: float, seed: int = 0) -> F32:
    """A matrix with these singular values, about, and noise."""
    rng = np.random.default_rng(seed)
    out = rng.normal(0, noise, (rows, columns))
    for size in sizes:
        u, v = rng.normal(0, 1, rows), rng.normal(0, 1, columns)
        out += size * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    return out.astype(np.float32)


def reader(matrix: F32) -> Callable[[int, int], F32]:
    """Read whole rows of a matrix."""

    def read(start: int, stop: int) -> F32:
        assert start % matrix.shape[1] == stop % matrix.shape[1] == 0 <= start < stop <= matrix.size
        return matrix.reshape(-1)[start:stop].copy()

    return read


def spectrum(matrix: F32, rank: int = 4, key: int = 77, **options: Any) -> Spectrum:
    rows, columns = matrix.shape
    found = spectrum_of(reader(matrix), rows, columns, rank, key, **options)
    assert found is not None
    return found


def directions(matrix: F32, found: Spectrum, rank: int = 8, workers: int = 1) -> Directions | None:
    """The directions of a matrix, as `Delta.times` gives what they are made of."""
    f32, nothing = BY_NAME["f32"], np.zeros(matrix.size, np.float32)

    def multiply(start: int, stop: int, right: F32, scale: np.float32) -> F32:
        assert start % matrix.shape[1] == stop % matrix.shape[1] == 0 <= start < stop <= matrix.size
        return kernels.active().difference_times(nothing[start:stop], f32, matrix.reshape(-1)[start:stop], f32, right, scale)

    return directions_of(multiply, found, rank, workers)


def largest(matrix: F32, rank: int = 4, **options: Any) -> Directions:
    made = directions(matrix, spectrum(matrix, rank, **options))
    assert made is not None
    return made


def product_of(factors: Factors) -> F32:
    rows, columns = factors.shape.rows, factors.shape.columns
    return kernels.active().product_values(factors.product(0, rows * columns, np.float32(1))).reshape(rows, columns)


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (150, 400), (3000, 64), (40, 9), (7, 30), (1, 50), (50, 1)])
def test_the_largest_are_found(rows: int, columns: int) -> None:
    matrix = low_rank(rows, columns, [8.0, 4.0, 2.0], 0.004)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    about, count = spectrum(matrix, 3), min(3, rows, columns)
    found = directions(matrix, about)
    assert found is not None
    assert len(about.values) == len(found.values) == len(found.left) == len(found.right) == count
    assert np.abs(about.values / expected[:count] - 1).max() < 1e-4
    assert np.abs(found.values / expected[:count] - 1).max() < 1e-4
    assert abs(about.energy / np.square(expected).sum() - 1) < 1e-5
    assert np.abs(found.left @ found.left.T - np.eye(count)).max() < 1e-4
    assert np.abs(found.right @ found.right.T - np.eye(count)).max() < 1e-4
    best = np.square(expected[count:]).sum()
    rest = np.square(matrix - (found.left.T * found.values) @ found.right, dtype=np.float64).sum()
    assert rest <= best * 1.001 + 1e-9 * about.energy


def test_kappa_is_that_of_all_singular_values() -> None:
    rng, size = np.random.default_rng(1), 200
    for power in (0.0, 1.0):
        left, right = (np.linalg.qr(rng.normal(0, 1, (size, size)))[0] for _ in range(2))
        values = np.arange(1.0, size + 1) ** -power
        matrix = ((left * values) @ right.T).astype(np.float32)
        expected = np.square(values).sum() ** 3 / (size * size * (values**6).sum())
        found = [spectrum(matrix, key=key).kappa / expected for key in range(8)]
        assert np.abs(np.mean(found) - 1) < 0.1, (power, found)


def test_a_matrix_of_low_rank_has_no_more_values() -> None:
    found = spectrum(low_rank(120, 80, [3.0, 1.0], 0), 6)
    assert len(found.values) == 2
    nothing = spectrum(np.zeros((30, 20), np.float32))
    assert (nothing.energy, nothing.kappa, len(nothing.values)) == (0, 0, 0)
    assert nothing.right.shape == (0, 20)
    none = directions(np.zeros((30, 20), np.float32), nothing)
    assert none is not None and (none.left.shape, none.right.shape) == ((0, 30), (0, 20))


@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e12, 1e30])
def test_sizes_of_any_power(size: float) -> None:
    matrix = low_rank(60, 40, [8.0, 4.0], 0.01)
    plain, scaled = spectrum(matrix, 2), spectrum(matrix * np.float32(size), 2)
    assert np.abs(scaled.values / plain.values / size - 1).max() < 1e-4
    assert abs(scaled.kappa / plain.kappa - 1) < 1e-3
    one, other = directions(matrix, plain), directions(matrix * np.float32(size), scaled)
    assert one is not None and other is not None
    assert np.abs(other.values / one.values / size - 1).max() < 1e-4
    assert np.abs(np.abs((one.left * other.left).sum(1)) - 1).max() < 1e-4


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_has_none(odd: float) -> None:
    matrix = low_rank(60, 40, [8.0], 0.01)
    matrix[17, 3] = odd
    assert spectrum_of(reader(matrix), 60, 40, 2, 1) is None
    assert directions(matrix, spectrum(low_rank(60, 40, [8.0], 0.01), 2)) is None


def test_the_same_bits_whatever_the_workers_and_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = low_rank(3 * CHUNK // 500, 500, [9.0, 3.0], 0.003)

    def bits(**options: Any) -> list[bytes]:
        found = spectrum(matrix, **options)
        made = directions(matrix, found, workers=options.get("workers", 1))
        assert made is not None
        told: list[NDArray[Any]] = [found.values, found.right, np.array(found.sixth), made.values, made.left, made.right]
        return [value.tobytes() for value in told]

    first = bits(workers=1)
    assert bits(workers=2) == bits(workers=5) == first
    assert bits(key=78) != first
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "active", lambda: load("reference"))
        assert bits() == first


def test_rows_longer_than_a_chunk() -> None:
    matrix = low_rank(4, CHUNK + 5, [5.0, 1.0], 1e-5)
    expected = np.linalg.svd(matrix, compute_uv=False)
    assert np.abs(spectrum(matrix, 2).values / expected[:2] - 1).max() < 1e-3


@pytest.mark.parametrize(("bits", "lost"), [(2, 0.3), (4, 0.03), (8, 3e-4)])
def test_factors_have_the_gain_of_projections(bits: int, lost: float) -> None:
    matrix = low_rank(700, 500, [8.0, 4.0, 2.0], 0)
    found = largest(matrix, 3)
    factors = quantise_factors(found, 3, bits)
    assert (factors.shape.rank, factors.shape.bits) == (3, bits)
    made = product_of(factors).astype(np.float64)
    whole = np.square(matrix, dtype=np.float64).sum()
    assert np.square(matrix - made).sum() < lost * whole
    assert abs(whole / (matrix * made).sum() - 1) < 0.01  # no shrinking, however few the bits
    for k, column in enumerate(found.left):
        own = column.astype(np.float64) * np.sqrt(found.values[k])
        assert abs((own @ own) / (own @ (factors.left_numbers[k] * np.float64(factors.scales[0, k]))) - 1) < 1e-5


def test_fewer_directions_than_asked_for() -> None:
    factors = quantise_factors(largest(low_rank(90, 60, [2.0], 0), 4), 4, 4)
    assert factors.shape.rank == 1


def test_a_column_of_few_large_elements() -> None:
    matrix = np.zeros((5000, 64), np.float32)
    matrix[[3, 999, 4321]] = np.random.default_rng(0).normal(0, 1, (3, 64)).astype(np.float32)
    made = product_of(quantise_factors(largest(matrix, 3), 3, 8))
    assert np.square(matrix - made).sum() < 0.2 * np.square(matrix).sum()  # of scales for a Gaussian column 0.8 is left over


@pytest.mark.parametrize("share", [2, 5])
def test_a_share_of_the_rows_tells_the_directions(share: int) -> None:
    matrix = low_rank(4000, 90, [8.0, 4.0, 2.0], 0.004)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    found = spectrum(matrix, 3, share=share)
    assert np.abs(found.values / expected[:3] - 1).max() < 0.15  # as few rows tell it
    assert abs(found.energy / np.square(expected).sum() - 1) < 0.1
    made = directions(matrix, found)
    assert made is not None
    assert np.abs(made.values / expected[:3] - 1).max() < 1e-2
    rest = np.square(matrix - (made.left.T * made.values) @ made.right, dtype=np.float64).sum()
    assert rest <= np.square(expected[3:]).sum() * 1.02
    again = spectrum(matrix, 3, share=share, workers=3)
    assert (again.values.tobytes(), again.right.tobytes(), again.sixth) == (found.values.tobytes(), found.right.tobytes(), found.sixth)


def test_rows_that_turned_directions_do_not_tell_their_values() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (2000, 512)).astype(np.float32)
    squares = [np.square(spectrum(noise, 8, key, share=16).values).mean() / 2000 for key in range(6)]
    assert abs(np.mean(squares) - 1) < 0.1  # of 128 rows of noise, those that they were turned by would say about 4


def test_kappa_by_few_rows_is_near_that_by_all() -> None:
    rng, rows, columns = np.random.default_rng(3), 2000, 160
    left, right = np.linalg.qr(rng.normal(0, 1, (rows, columns)))[0], np.linalg.qr(rng.normal(0, 1, (columns, columns)))[0]
    matrix = ((left * np.arange(1.0, columns + 1) ** -0.7) @ right.T).astype(np.float32)
    few, every = (np.mean([spectrum(matrix, key=key, share=share).kappa for key in range(8)]) for share in (4, 1))
    assert 0.8 < few / every < 1.25


def test_rows_that_no_share_sees_are_looked_for() -> None:
    matrix = np.zeros((640, 30), np.float32)
    matrix[16:80] = 1
    found, whole = spectrum(matrix, 2, share=5), spectrum(matrix, 2)
    assert len(found.values) == 1
    assert (found.energy, found.values.tobytes()) == (whole.energy, whole.values.tobytes())


def test_what_holds_arrays_is_itself_and_no_other() -> None:
    matrix = low_rank(64, 48, [5.0], 0.1)
    one, other = (spectrum_of(reader(matrix), 64, 48, 2, 7) for _ in range(2))
    assert one is not None and other is not None and one != other and len({one, one, other}) == 2
    made, again = directions(matrix, one), directions(matrix, one)
    assert made is not None and again is not None and made != again and len({made, made, again}) == 2
    first, second = quantise_factors(made, 1, 4), quantise_factors(again, 1, 4)
    assert first != second and len({first, first, second}) == 2 and first.raw() == second.raw()
