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


@pytest.mark.parametrize("zero_is_positive", [True, False])
def test_elections_by_plain_scalars(loops: Backend, zero_is_positive: bool) -> None:
    rng = np.random.default_rng(3)
    deltas = rng.choice([0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 2.0**-130], (4, 300)).astype(np.float32)
    voices, shares = np.array([1, 0.5, -0.3, 0], np.float32), np.array([0.7, 0.1, 0, 2], np.float32)
    measures = np.array([1, 0.25, 3, 1], np.float32)
    mixed, weight = loops.elect(deltas, voices, shares, measures, zero_is_positive)
    for column in range(300):
        votes = [delta * voice for delta, voice in zip(deltas[:, column], voices, strict=True)]
        total = np.float32(0)
        for vote in votes:
            total = total + vote
        positive = total >= 0 if zero_is_positive else total > 0
        sums = [np.float32(0), np.float32(0)]
        for vote, delta, share, measure in zip(votes, deltas[:, column], shares, measures, strict=True):
            agrees = vote > 0 if positive else vote < 0
            sums = [sums[0] + (delta * share if agrees else np.float32(0)), sums[1] + (measure if agrees else np.float32(0))]
        assert [mixed[column].tobytes(), weight[column].tobytes()] == [one.tobytes() for one in sums]


@pytest.mark.parametrize("packs", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_backends_elect_the_same(packs: int, count: int) -> None:
    """Any bits, infinities among them, over the borders of the blocks in which the compiled loops work."""
    rng = np.random.default_rng(count)
    bits = rng.integers(0, 1 << 32, (packs, count), np.uint32)
    deltas = np.where(np.isnan(bits.view(np.float32)), np.float32(0), bits.view(np.float32))
    weights = rng.normal(size=(3, packs)).astype(np.float32)
    for zero_is_positive in (True, False):
        results = [load(name).elect(deltas, *weights, zero_is_positive) for name in BACKENDS]
        for one, other in zip(*results, strict=True):
            assert np.array_equal(np.isnan(one), np.isnan(other))
            assert np.where(np.isnan(one), 0, one).tobytes() == np.where(np.isnan(other), 0, other).tobytes()


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
