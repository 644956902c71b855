"""Sums of terms and a base by every backend, against plain Python scalars."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.backends import BACKENDS, load, unsigned
from support.laws import examples
from vectors import scalar

from deltapack.dtypes import BY_NAME
from deltapack.kernels import Backend
from deltapack.kernels.layout import Sparse

FLOATS = ["f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"]
special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 1e-38, 2.0**24])
numbers = special | st.floats(width=32, allow_nan=False, allow_infinity=False)
sparse = st.dictionaries(st.integers(0, 11), numbers, max_size=12)


@pytest.mark.parametrize("backend", BACKENDS)
@examples(100)
@given(st.lists(sparse, min_size=1, max_size=4))
def test_sum_of_terms_by_plain_scalars(backend: str, terms: list[dict[int, float]]) -> None:
    expected: dict[int, np.float32] = {}
    with np.errstate(all="ignore"):
        for term in terms:
            for position, value in term.items():
                expected[position] = expected.get(position, np.float32(0)) + np.float32(value)
    arrays = [Sparse(np.array(sorted(term), np.uint32), np.array([term[at] for at in sorted(term)], np.float32)) for term in terms]
    before = [(positions.tobytes(), values.tobytes()) for positions, values in arrays]
    positions, values = load(backend).sum_terms(12, arrays)
    assert positions.dtype == np.uint32
    assert positions.tolist() == sorted(expected)
    assert values.tobytes() == np.array([expected[at] for at in sorted(expected)], np.float32).tobytes()
    assert before == [(positions.tobytes(), values.tobytes()) for positions, values in arrays]


def test_the_sum_starts_from_positive_zero(loops: Backend) -> None:
    one = Sparse(np.array([3], np.uint32), np.array([-0.0], np.float32))
    for terms in ([one], [one, one]):
        assert not np.signbit(loops.sum_terms(5, terms)[1][0])


def elements_of(name: str, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Any bits, NaN and infinities among them, and zeros of both signs."""
    size = BY_NAME[name].itemsize
    bits = np.concatenate([rng.integers(0, 256, count * size, np.uint8).view(f"<u{size}"), np.zeros(100, f"<u{size}")])
    bits[-50:] = 1 << 8 * size - 1  # -0.0
    return bits.view(BY_NAME[name].storage)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_add_sparse_by_plain_scalars(loops: Backend, source: str, target: str) -> None:
    rng = np.random.default_rng(3)
    base = elements_of(source, 300, rng)
    bits = unsigned(base).copy()
    positions = np.flatnonzero(rng.random(400) < 0.7).astype(np.uint32)
    total = np.where(rng.random(len(positions)) < 0.2, 0, rng.normal(0, 1, len(positions))).astype(np.float32)
    total[::17], total[1::17], total[2::17] = 1e-40, 3e38, np.inf
    found = loops.add_sparse(base, BY_NAME[source], BY_NAME[target], positions, total)
    values = dict(zip(positions.tolist(), total.tolist(), strict=True))
    expected = [scalar.patch(source, element, target, [values[at]] if at in values else []) for at, element in enumerate(bits.tolist())]
    assert found.dtype == np.dtype(BY_NAME[target].storage)
    assert unsigned(found).tolist() == expected
    assert unsigned(base).tobytes() == bits.tobytes()


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("terms", [1, 2, 5])
def test_add_in_place_by_plain_scalars(loops: Backend, name: str, terms: int) -> None:
    rng = np.random.default_rng(terms)
    elements = elements_of(name, 300, rng)
    bits, parts = unsigned(elements).copy(), []
    for _ in range(terms):
        positions = np.flatnonzero(rng.random(400) < 0.5).astype(np.uint32)
        values = rng.choice([0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, -3e38, np.inf, 2.0**-9], len(positions)).astype(np.float32)
        mixed = np.where(rng.random(len(values)) < 0.5, values, rng.normal(size=len(values)).astype(np.float32))
        parts.append(Sparse(positions, mixed))
    kept = [dict(zip(positions.tolist(), values.tolist(), strict=True)) for positions, values in parts]
    loops.add_in_place(elements, BY_NAME[name], parts)
    expected = [scalar.patch(name, element, name, [part[at] for part in kept if at in part]) for at, element in enumerate(bits.tolist())]
    assert unsigned(elements).tolist() == expected


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("terms", [1, 2, 8])
@pytest.mark.parametrize("length", [1, 8191, 8192, 8193, 100_003])
def test_backends_add_the_same_in_place(name: str, terms: int, length: int) -> None:
    """Any bits in elements and values, over the borders of the blocks in which the compiled loops work."""
    rng, results = np.random.default_rng(length), []
    start = rng.integers(0, 256, length * BY_NAME[name].itemsize, np.uint8).view(BY_NAME[name].storage)
    parts = []
    for number in range(terms):
        positions = np.flatnonzero(rng.random(length) < (0.01, 0.5, 1.1)[number % 3]).astype(np.uint32)
        parts.append(Sparse(positions, rng.integers(0, 1 << 32, len(positions), np.uint32).view(np.float32)))
    for backend in BACKENDS:
        elements = start.copy()
        load(backend).add_in_place(elements, BY_NAME[name], parts)
        results.append(elements.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_element_of_16_bits_widens_and_rounds_alike(name: str) -> None:
    """Each of the 65,536 elements plus zero: itself, but for -0.0 and NaN."""
    results = []
    for backend in BACKENDS:
        elements = np.arange(1 << 16, dtype=np.uint16).view(BY_NAME[name].storage)
        zeros = Sparse(np.arange(1 << 16, dtype=np.uint32), np.zeros(1 << 16, np.float32))
        load(backend).add_in_place(elements, BY_NAME[name], [zeros])
        results.append(unsigned(elements))
    assert np.array_equal(results[0], results[1])
    moved = np.flatnonzero(results[0] != np.arange(1 << 16))
    assert moved[0] == 0x7F81 if name == "bf16" else moved[0] == 0x7C01
    assert results[0][0x8000] == 0


@pytest.mark.parametrize("name", FLOATS)
def test_are_finite(loops: Backend, name: str) -> None:
    dtype = BY_NAME[name]
    elements = np.zeros(300, dtype.storage)
    positions = np.arange(0, 300, 3, dtype=np.uint32)
    unsigned(elements)[1] = unsigned(np.full(1, -1, f"<i{dtype.itemsize}"))[0]  # a NaN that is not asked for
    assert loops.are_finite(elements, dtype, positions)
    unsigned(elements)[297] = unsigned(elements)[1]
    assert not loops.are_finite(elements, dtype, positions)
    assert loops.are_finite(elements, dtype, positions[:0])


def test_adding_nothing_gives_the_base_itself(loops: Backend) -> None:
    base = np.array([1, 0x7F81], np.uint16)
    none = np.zeros(0, np.uint32), np.zeros(0, np.float32)
    assert loops.add_sparse(base, BY_NAME["bf16"], BY_NAME["bf16"], *none) is base


def test_negative_zero_plus_zero_is_positive_zero(loops: Backend) -> None:
    base = np.array([-0.0, -0.0], np.float32)
    found = loops.add_sparse(base, BY_NAME["f32"], BY_NAME["f32"], np.array([1], np.uint32), np.zeros(1, np.float32))
    assert np.signbit(found.astype(np.float32)).tolist() == [True, False]


def test_signalling_nan_stays_where_nothing_is_kept(loops: Backend) -> None:
    base = np.array([0x7F800001, 0x7F800001], np.uint32).view(np.float32)
    found = loops.add_sparse(base, BY_NAME["f32"], BY_NAME["f32"], np.array([1], np.uint32), np.ones(1, np.float32))
    assert unsigned(found).tolist() == [0x7F800001, 0x7FC00000]
