"""Which elements are kept, by every backend: against plain Python and against each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.backends import BACKENDS, load
from support.laws import examples

from deltapack.kernels import Backend
from deltapack.kernels.layout import TILE
from deltapack.kernels.reference.choosing import HIGH, LOW, MAGNITUDE, magnitude_bits
from deltapack.kernels.reference.positions import philox

EDGES = np.array([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, 3e38], np.float32)
NUMBERS = st.one_of(st.sampled_from(EDGES.tolist()), st.floats(width=32, allow_nan=False))
VALUES = arrays(np.float32, st.integers(0, 50), elements=NUMBERS)


def test_bits_have_the_order_of_magnitudes() -> None:
    values = np.array([0.0, -1e-45, 1e-40, -1.0, 1.5, -np.inf], np.float32)
    assert list(np.argsort(magnitude_bits(values))) == list(range(6))


def plain_bits(values: np.ndarray) -> list[int]:
    return [int(bits) & 0x7FFFFFFF for bits in values.view(np.uint32)]


@examples(60)
@given(VALUES)
def test_histograms_by_plain_counting(values: np.ndarray) -> None:
    bits = plain_bits(values)
    for backend in BACKENDS:
        counts = load(backend).histogram_high(values)
        assert counts.shape == (HIGH,) and counts.sum() == sum(value != 0 for value in bits)
        for high in {value >> 16 for value in bits}:
            assert counts[high] == sum(value >> 16 == high and value != 0 for value in bits)
            low = load(backend).histogram_low(values, high)
            assert low.shape == (LOW,)
            places = [value & 0xFFFF for value in bits if value >> 16 == high]
            assert {place: count for place, count in enumerate(low.tolist()) if count} == Counter(places)


@examples(60)
@given(VALUES, st.data())
def test_what_is_between_two_cuts(values: np.ndarray, data: st.DataObject) -> None:
    bits = plain_bits(values)
    cuts = [data.draw(st.sampled_from([*bits, 0, MAGNITUDE])) for _ in range(2)]
    ties = [data.draw(st.integers(0, 3)) for _ in range(2)]
    above = [{place for place, value in enumerate(bits) if value > cut} for cut in cuts]
    for own, cut, count in zip(above, cuts, ties, strict=True):
        own |= set([place for place, value in enumerate(bits) if value == cut][:count])
    for backend in BACKENDS:
        found = load(backend).places_between(values, cuts[0], ties[0], cuts[1], ties[1])
        assert found.dtype == np.uint32 and found.tolist() == sorted(above[0] - above[1])


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 70_000), (40, 55), (0, 5)])
@pytest.mark.parametrize("spread", [3, 1 << 20])
def test_ranks_by_sorting(loops: Backend, shape: tuple[int, int], spread: int) -> None:
    values = np.random.default_rng(spread).integers(-spread, spread, shape).astype(np.float32)
    ranks = loops.row_ranks(values)
    for row, found in zip(np.abs(values).tolist(), ranks.tolist(), strict=True):
        assert sorted(found) == list(range(len(row)))
        ordered = [place for _, place in sorted(zip(found, range(len(row)), strict=True))]
        assert ordered == sorted(range(len(row)), key=lambda place: (row[place], place))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, TILE - 1, TILE, TILE + 1, 3 * TILE + 77])
def test_numbers_of_elements(loops: Backend, length: int) -> None:
    found = loops.element_samples(1 << 63 | 12345, 7, length)
    assert found.dtype == np.uint32 and len(found) == length
    for place in {0, 1, length // 2, length - 1, TILE, TILE + 6} & set(range(length)):
        block, tile = np.array([place % TILE // 4], np.uint64), np.array([7 + place // TILE], np.uint64)
        assert found[place] == philox(1 << 63 | 12345, tile, block)[0, place % 4]


def test_samples_below_the_limit_of_their_rank(loops: Backend) -> None:
    rng = np.random.default_rng(1)
    limits = np.array([0, 1 << 30, 1 << 31, 1 << 32], np.uint64)
    samples, ranks = rng.integers(0, 1 << 32, 1000, np.uint32), rng.integers(0, 4, 1000, np.uint32)
    expected = [place for place in range(1000) if int(samples[place]) < int(limits[ranks[place]])]
    assert loops.places_below(samples, ranks, limits).tolist() == expected
