"""Products of factors by every backend, against plain sums of single numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.backends import BACKENDS, load, unsigned

from deltapack.dtypes import BY_NAME
from deltapack.kernels import Backend, reference, rounding
from deltapack.kernels.layout import Sparse
from deltapack.kernels.product import Product

NOTHING = Sparse(np.zeros(0, np.uint32), np.zeros(0, np.float32))


def by_single_numbers(product: Product) -> NDArray[np.float32]:
    """The values as the specification says: one product after the other, each rounded, each sum rounded."""
    columns = product.right.shape[1]
    out = np.empty(product.length, np.float32)
    with np.errstate(all="ignore"):
        for at in range(product.length):
            row, column = divmod(product.start + at, columns)
            value = product.left[0, row] * product.right[0, column]
            for k in range(1, len(product.left)):
                value = np.float32(value + np.float32(product.left[k, row] * product.right[k, column]))
            out[at] = value
    return out


@st.composite
def products(draw: Any) -> Product:
    rank, columns, start = draw(st.integers(1, 9)), draw(st.integers(1, 40)), 0
    start = draw(st.integers(0, columns - 1))
    length = draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    rows = -(-(start + length) // columns)
    left, right = (rng.normal(0, 1, (rank, n)).astype(np.float32) for n in (rows, columns))
    if draw(st.booleans()):  # numbers whose products vanish or overflow
        left *= np.float32(draw(st.sampled_from([1e-30, 1e-42, 1e30, 0.0, -0.0])))
        right *= np.float32(draw(st.sampled_from([1e-12, 1e20])))
    return Product(left, right, start, length)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(products())
def test_values_are_sums_in_order(backend: str, product: Product) -> None:
    found, expected = load(backend).product_values(product), by_single_numbers(product)
    assert found.dtype == np.float32
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert unsigned(found[~nan]).tolist() == unsigned(expected[~nan]).tolist()


@settings(max_examples=60, deadline=None)
@given(products(), st.integers(0, 1 << 30))
def test_some_values_are_those_of_all(product: Product, seed: int) -> None:
    places = np.random.default_rng(seed).integers(0, product.length, 90, np.uint32)  # in any order: runs of a sample overlap
    places[30:] = np.sort(places[30:])
    for backend in BACKENDS:
        loops = load(backend)
        found, expected = loops.product_at(product, places), loops.product_values(product)[places]
        nan = np.isnan(expected)
        assert np.array_equal(np.isnan(found), nan), backend
        assert unsigned(found[~nan]).tolist() == unsigned(expected[~nan]).tolist(), backend


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"])
@settings(max_examples=25, deadline=None)
@given(products(), st.booleans(), st.integers(0, 1 << 30))
def test_a_product_and_a_sparse_term_are_added_as_two_terms_are(name: str, product: Product, alone: bool, seed: int) -> None:
    dtype, rng = BY_NAME[name], np.random.default_rng(seed)
    elements = rng.integers(0, 256, product.length * dtype.itemsize, np.uint8).view(dtype.storage)
    positions = np.flatnonzero(rng.random(product.length) < 0.3).astype(np.uint32)
    kept = NOTHING if alone else Sparse(positions, rng.choice(np.array([0.0, -0.0, 1.5, -2e-3, 1e-40], np.float32), len(positions)))
    expected = elements.copy()
    dense = Sparse(np.arange(product.length, dtype=np.uint32), by_single_numbers(product))
    reference.add_in_place(expected, dtype, [dense] if alone else [dense, kept])
    for backend in BACKENDS:
        found = elements.copy()
        load(backend).add_product(found, dtype, product, kept)
        assert unsigned(found).tolist() == unsigned(expected).tolist(), backend


def test_a_whole_chunk_and_room_that_is_given(loops: Backend) -> None:
    rng = np.random.default_rng(1)
    product = Product(rng.normal(0, 1, (5, 1100)).astype(np.float32), rng.normal(0, 1, (5, 1000)).astype(np.float32), 777, 1 << 20)
    room = np.full((1 << 20) + 256, np.nan, np.float32)
    found = loops.product_values(product, room)
    assert found.base is room
    assert unsigned(found).tobytes() == unsigned(reference.product_values(product)).tobytes()
    assert np.isnan(room[1 << 20 :]).all()
    elements = rng.integers(0, 1 << 16, 1 << 20, np.uint16)
    kept = Sparse(np.arange(0, 1 << 20, 7, dtype=np.uint32), rng.normal(0, 1, -(-(1 << 20) // 7)).astype(np.float32))
    expected = elements.copy()
    reference.add_product(expected, BY_NAME["bf16"], product, kept)
    loops.add_product(elements, BY_NAME["bf16"], product, kept)
    assert elements.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8_e4m3fn"])
@settings(max_examples=40, deadline=None)
@given(products(), st.sampled_from([0.02, 0.3, 1.0]), st.booleans(), st.integers(0, 1 << 30))
def test_what_a_product_leaves_of_kept_differences(name: str, product: Product, density: float, odd: bool, seed: int) -> None:
    dtype, rng = BY_NAME[name], np.random.default_rng(seed)
    base, tuned = (rng.integers(0, 256, product.length * dtype.itemsize, np.uint8).view(dtype.storage) for _ in range(2))
    if not odd:
        base, tuned = (rounding.from_f64(rng.normal(0, 1, product.length), dtype) for _ in range(2))
    positions = np.flatnonzero(rng.random(product.length) < density).astype(np.uint32)
    with np.errstate(all="ignore"):
        expected = (reference.difference(base, dtype, tuned, dtype) - by_single_numbers(product))[positions]
    nan = np.isnan(expected)
    for backend in BACKENDS:
        found = load(backend).kept_residuals(base, dtype, tuned, dtype, positions, product)
        assert np.array_equal(np.isnan(found), nan), backend
        assert unsigned(found[~nan]).tolist() == unsigned(expected[~nan]).tolist(), backend
