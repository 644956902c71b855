"""Formulas over the differences of several packs, by every backend: against plain Python and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from support.backends import BACKENDS, load

from deltapack.dtypes import BY_NAME
from deltapack.kernels import Backend
from deltapack.kernels.formulas import Election, Formula, Sharing, WeightedSum
from deltapack.kernels.layout import Sparse

Parts = list[Sparse]


def parts_of(rng: np.random.Generator, packs: int, length: int, values: list[float]) -> Parts:
    """Sparse differences with values out of a list."""
    positions = [np.flatnonzero(rng.random(length) < 0.4).astype(np.uint32) for _ in range(packs)]
    return [Sparse(places, rng.choice(values, len(places)).astype(np.float32)) for places in positions]


@pytest.mark.parametrize("zero_is_positive", [True, False])
@pytest.mark.parametrize(("divided", "floor", "scale"), [(False, 0, 1), (True, 0, 1), (True, 0.5, 0.3), (True, 1e-6, -2)])
def test_elections_by_plain_scalars(loops: Backend, zero_is_positive: bool, divided: bool, floor: float, scale: float) -> None:
    parts = parts_of(np.random.default_rng(3), 4, 300, [0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 2.0**-130])
    vote_weights, shares = np.array([1, 0.5, -0.3, 0], np.float32), np.array([0.7, 0.1, 0, 2], np.float32)
    measures, limits = np.array([1, 0.25, -1, 1], np.float32), (np.float32(floor), np.float32(scale))
    election = Election(vote_weights, shares, measures if divided else None, zero_is_positive, *map(float, limits))
    positions, found = loops.blend(300, parts, election)
    kept = [dict(zip(places.tolist(), values, strict=True)) for places, values in parts]
    assert positions.tolist() == sorted(set().union(*kept))
    zero = np.float32(0)
    for position, result in zip(positions.tolist(), found, strict=True):
        deltas = [part.get(position, zero) for part in kept]
        total, mixed, divisor = zero, zero, zero
        for delta, voice in zip(deltas, vote_weights, strict=True):
            total = total + delta * voice
        positive = total >= 0 if zero_is_positive else total > 0
        for delta, voice, share, measure in zip(deltas, vote_weights, shares, measures, strict=True):
            agrees = delta * voice > 0 if positive else delta * voice < 0
            mixed, divisor = mixed + (delta * share if agrees else zero), divisor + (measure if agrees else zero)
        limited = max(divisor, limits[0]) if floor > 0 else (divisor if divisor != 0 else np.float32(1))
        expected = (mixed / limited if divided else mixed) * limits[1] + zero
        assert result.tobytes() == expected.tobytes()
        assert not np.signbit(result) or result != 0


def test_shared_and_unique_changes_by_plain_scalars(loops: Backend) -> None:
    parts = parts_of(np.random.default_rng(4), 3, 300, [0.0, -0.0, 1e-6, 1.0, -0.3, 0.1])
    alone, epsilon = np.array([1, 1.5, 1 / 3], np.float32), 1e-5
    positions, found = loops.blend(300, parts, Sharing(epsilon, alone))
    dense = [dict(zip(places.tolist(), values, strict=True)) for places, values in parts]
    assert positions.tolist() == sorted(set().union(*dense))
    for position, result in zip(positions.tolist(), found, strict=True):
        kept = [(part[position], factor) for part, factor in zip(dense, alone, strict=True) if abs(part.get(position, 0)) > epsilon]
        total = np.float32(0)
        for delta, factor in kept:
            total = total + (delta * factor if len(kept) == 1 else delta / np.float32(len(kept)))
        assert result.tobytes() == total.tobytes()


def formulas(rng: np.random.Generator, packs: int) -> list[Formula]:
    one, two, three = rng.normal(size=(3, packs)).astype(np.float32)
    elections = [Election(one, two, three), Election(one, two, three, False, 0.1, 0.7), Election(one, two, None, True, 0, -0.3)]
    return [WeightedSum(one), *elections, Sharing(0.01, two)]


@pytest.mark.parametrize("packs", [1, 2, 5])
@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 10_000])
def test_backends_blend_the_same(packs: int, length: int) -> None:
    """Any bits, infinities among them, over the borders of the blocks in which the compiled loops work."""
    rng, parts = np.random.default_rng(length), []
    for number in range(packs):
        positions = np.flatnonzero(rng.random(length) < (0.3, 1.1)[number % 2]).astype(np.uint32)
        values = rng.integers(0, 1 << 32, len(positions), np.uint32).view(np.float32)
        parts.append(Sparse(positions, np.where(np.isnan(values), np.float32(0), values)))
    for formula in formulas(rng, packs):
        one, other = (load(name).blend(length, parts, formula) for name in BACKENDS)
        assert one[0].tobytes() == other[0].tobytes()
        assert np.array_equal(np.isnan(one[1]), np.isnan(other[1]))
        assert np.where(np.isnan(one[1]), 0, one[1]).tobytes() == np.where(np.isnan(other[1]), 0, other[1]).tobytes()


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64", "f8_e4m3fn"])
@pytest.mark.parametrize("length", [0, 1, 4097])
def test_adding_what_was_blended(loops: Backend, dtype: str, length: int) -> None:
    """In one go or in two steps; elements that no pack keeps keep their bits, -0.0 and NaN among them."""
    rng, kind = np.random.default_rng(length), BY_NAME[dtype]
    parts = parts_of(rng, 3, length, [0.0, -0.0, 1.0, -0.3, 3e38, -3e38, 2.0**-130])
    elements = rng.integers(0, 256, length * kind.itemsize).astype(np.uint8).view(kind.storage)
    for formula in formulas(rng, 3):
        expected, found = elements.copy(), elements.copy()
        loops.add_in_place(expected, kind, [loops.blend(length, parts, formula)])
        loops.add_blended(found, kind, parts, formula)
        assert found.tobytes() == expected.tobytes()
        untouched = np.ones(length, bool)
        for positions, _ in parts:
            untouched[positions] = False
        assert found[untouched].tobytes() == elements[untouched].tobytes()
