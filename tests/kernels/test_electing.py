"""Differences side by side and sums by sign, by every backend: against plain Python and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS, load
from hypothesis import given, settings
from hypothesis import strategies as st

from deltapack.kernels import Backend

numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, -0.3, 1e-45, 3e38, -3e38])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 9), numbers), min_size=1, max_size=5))
def test_stacks_by_plain_dictionaries(parts: list[dict[int, float]]) -> None:
    arrays = [(np.array(sorted(part), np.uint32), np.array([part[at] for at in sorted(part)], np.float32)) for part in parts]
    union = sorted(set().union(*parts))
    expected = np.array([[part.get(at, 0.0) for at in union] for part in parts], np.float32).reshape(len(parts), len(union))
    for backend in BACKENDS:
        positions, deltas = load(backend).stack_terms(10, arrays)
        assert positions.dtype == np.uint32
        assert positions.tolist() == union
        assert deltas.tobytes() == expected.tobytes()


def parts_of(rng: np.random.Generator, packs: int, length: int, values: list[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sparse differences with values out of a list."""
    positions = [np.flatnonzero(rng.random(length) < 0.4).astype(np.uint32) for _ in range(packs)]
    return [(places, rng.choice(values, len(places)).astype(np.float32)) for places in positions]


@pytest.mark.parametrize("zero_is_positive", [True, False])
@pytest.mark.parametrize(("divided", "floor", "scale"), [(False, 0, 1), (True, 0, 1), (True, 0.5, 0.3), (True, 1e-6, -2)])
def test_elections_by_plain_scalars(loops: Backend, zero_is_positive: bool, divided: bool, floor: float, scale: float) -> None:
    parts = parts_of(np.random.default_rng(3), 4, 300, [0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 2.0**-130])
    voices, shares = np.array([1, 0.5, -0.3, 0], np.float32), np.array([0.7, 0.1, 0, 2], np.float32)
    measures, limits = np.array([1, 0.25, -1, 1], np.float32), (np.float32(floor), np.float32(scale))
    positions, found = loops.blend_elected(300, parts, voices, shares, measures, zero_is_positive, divided, *limits)
    kept = [dict(zip(places.tolist(), values, strict=True)) for places, values in parts]
    assert positions.tolist() == sorted(set().union(*kept))
    zero = np.float32(0)
    for position, result in zip(positions.tolist(), found, strict=True):
        deltas = [part.get(position, zero) for part in kept]
        total, mixed, divisor = zero, zero, zero
        for delta, voice in zip(deltas, voices, strict=True):
            total = total + delta * voice
        positive = total >= 0 if zero_is_positive else total > 0
        for delta, voice, share, measure in zip(deltas, voices, shares, measures, strict=True):
            agrees = delta * voice > 0 if positive else delta * voice < 0
            mixed, divisor = mixed + (delta * share if agrees else zero), divisor + (measure if agrees else zero)
        limited = max(divisor, limits[0]) if floor > 0 else (divisor if divisor != 0 else np.float32(1))
        expected = (mixed / limited if divided else mixed) * limits[1] + zero
        assert result.tobytes() == expected.tobytes()
        assert not np.signbit(result) or result != 0


@pytest.mark.parametrize("packs", [1, 2, 5])
@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 5000])
def test_backends_elect_the_same(packs: int, length: int) -> None:
    """Any bits, infinities among them, over the borders of the blocks in which the compiled loops work."""
    rng, parts = np.random.default_rng(length), []
    for number in range(packs):
        positions = np.flatnonzero(rng.random(length) < (0.3, 1.1)[number % 2]).astype(np.uint32)
        values = rng.integers(0, 1 << 32, len(positions), np.uint32).view(np.float32)
        parts.append((positions, np.where(np.isnan(values), np.float32(0), values)))
    weights = list(rng.normal(size=(3, packs)).astype(np.float32))
    for zero_is_positive, divided, floor in [(True, True, 0), (False, True, 0.1), (True, False, 0)]:
        arguments = length, parts, *weights, zero_is_positive, divided, np.float32(floor), np.float32(0.7)
        one, other = (load(name).blend_elected(*arguments) for name in BACKENDS)
        assert one[0].tobytes() == other[0].tobytes()
        assert np.array_equal(np.isnan(one[1]), np.isnan(other[1]))
        assert np.where(np.isnan(one[1]), 0, one[1]).tobytes() == np.where(np.isnan(other[1]), 0, other[1]).tobytes()


def test_shared_and_unique_changes_by_plain_scalars(loops: Backend) -> None:
    rng = np.random.default_rng(4)
    deltas = rng.choice([0.0, -0.0, 1e-6, 1.0, -0.3, 0.1], (3, 300)).astype(np.float32)
    alone, epsilon = np.array([1, 1.5, 1 / 3], np.float32), np.float32(1e-5)
    found = loops.mix_shared(deltas, epsilon, alone)
    for column in range(300):
        kept = [(delta, factor) for delta, factor in zip(deltas[:, column], alone, strict=True) if abs(delta) > epsilon]
        total = np.float32(0)
        for delta, factor in kept:
            total = total + (delta * factor if len(kept) == 1 else delta / np.float32(len(kept)))
        assert found[column].tobytes() == total.tobytes()


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_backends_mix_the_same(count: int) -> None:
    rng = np.random.default_rng(count)
    deltas = np.where(rng.random((4, count)) < 0.4, rng.normal(size=(4, count)), 0).astype(np.float32)
    alone = rng.normal(size=4).astype(np.float32)
    one, other = (load(name).mix_shared(deltas, np.float32(0.01), alone) for name in BACKENDS)
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("count", [0, 1, 2, 1025, 65_536])
def test_scalar_products_by_plain_scalars(loops: Backend, count: int) -> None:
    """In order: over many magnitudes any other order gives other bits. Negative zeros add up to +0.0."""
    rng = np.random.default_rng(count)
    one, other = (np.ldexp(rng.normal(size=count), rng.integers(-60, 60, count)).astype(np.float32) for _ in range(2))
    one[::3] = 0
    total = 0.0
    for left, right in zip(one.tolist(), other.tolist(), strict=True):
        total += left * right
    assert loops.scalar_product(one, other).hex() == total.hex()
    assert loops.scalar_product(np.zeros_like(one), -np.abs(other)).hex() == (0.0).hex()


def test_backends_multiply_the_same() -> None:
    rng = np.random.default_rng(5)
    rows = rng.choice([0.0, -0.0, 1.0, -0.1, 1e-45, 3e38, -np.inf], (40, 3)).astype(np.float32)
    for one in rows:
        for other in rows:
            found = {np.float64(load(name).scalar_product(one, other)).tobytes() for name in BACKENDS}
            assert len(found) == 1
