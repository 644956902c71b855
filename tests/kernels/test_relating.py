"""How the differences of several packs relate, by every backend: against plain Python and against each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.backends import BACKENDS, load
from support.laws import examples

from deltapack.kernels import Backend
from deltapack.kernels.layout import Sparse

numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, -0.3, 1e-45, 3e38, -3e38])
plain_parts = st.lists(st.dictionaries(st.integers(0, 9), numbers), min_size=1, max_size=5)


def arrays_of(parts: Sequence[dict[int, float]]) -> list[Sparse]:
    return [Sparse(np.array(sorted(part), np.uint32), np.array([part[at] for at in sorted(part)], np.float32)) for part in parts]


@examples(60)
@given(plain_parts)
def test_stacks_by_plain_dictionaries(parts: list[dict[int, float]]) -> None:
    union = sorted(set().union(*parts))
    expected = np.array([[part.get(at, 0.0) for at in union] for part in parts], np.float32).reshape(len(parts), len(union))
    for backend in BACKENDS:
        positions, deltas = load(backend).stack_terms(10, arrays_of(parts))
        assert positions.dtype == np.uint32
        assert positions.tolist() == union
        assert deltas.tobytes() == expected.tobytes()


@examples(60)
@given(plain_parts, st.sampled_from([0.0, 0.1, 1.0]))
def test_shared_changes_by_plain_dictionaries(parts: list[dict[int, float]], epsilon: float) -> None:
    changed = [{at for at, value in part.items() if abs(np.float32(value)) > np.float32(epsilon)} for part in parts]
    shared = [sum(sum(at in other for other in changed) > 1 for at in own) for own in changed]
    for backend in BACKENDS:
        counts = load(backend).count_shared(10, arrays_of(parts), epsilon)
        assert counts.tolist() == [shared, [len(own) - several for own, several in zip(changed, shared, strict=True)]]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_several_are_several_however_many(loops: Backend, count: int) -> None:
    """More packs than a byte can count, all of which change the first element."""
    parts = [Sparse(np.zeros(1, np.uint32), np.ones(1, np.float32))] * count + [Sparse(np.array([1], np.uint32), np.ones(1, np.float32))]
    expected = [[1 if count > 1 else 0] * count + [0], [1 if count == 1 else 0] * count + [1]]
    assert loops.count_shared(2, parts, 0.5).tolist() == expected


def magnitudes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Over many magnitudes any other order gives other bits."""
    return np.ldexp(rng.normal(size=count), rng.integers(-60, 60, count)).astype(np.float32)


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 5000])
def test_scalar_products_by_plain_scalars(loops: Backend, length: int) -> None:
    rng, parts = np.random.default_rng(length), []
    for density in (1.1, 0.5, 0.1):
        positions = np.flatnonzero(rng.random(length) < density).astype(np.uint32)
        parts.append(Sparse(positions, magnitudes(rng, len(positions))))
    found = loops.scalar_products(length, parts)
    dense = [dict(zip(positions.tolist(), values.tolist(), strict=True)) for positions, values in parts]
    for i, one in enumerate(dense):
        for j, other in enumerate(dense):
            total = 0.0
            for position in sorted(one.keys() & other.keys()):
                total += one[position] * other[position]
            assert float(found[i, j]).hex() == total.hex()


def test_products_of_negative_zeros_and_infinities() -> None:
    """Negative zeros add up to +0.0; an infinity that one pack alone keeps is in no product."""
    inf = float("inf")
    for values in ([-0.0, 1.0, inf], [inf, 1.0, -1.0], [-inf, 0.0, 2.0], [-0.0, -0.0, 3e38]):
        own = Sparse(np.arange(3, dtype=np.uint32), np.array(values, np.float32))
        other = Sparse(np.array([1], np.uint32), np.array([1.0], np.float32))
        one, two = (load(name).scalar_products(3, [own, other]) for name in BACKENDS)
        assert np.array_equal(one, two, equal_nan=True)
        assert two[0, 1] == values[1] and not np.signbit(two[0, 1])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1025, 65_536])
def test_sums_of_squares_by_plain_scalars(loops: Backend, count: int) -> None:
    values = magnitudes(np.random.default_rng(count), count)
    lanes = [0.0] * 8
    for place, value in enumerate(values.tolist()):
        lanes[place % 8] += value * value
    total = 0.0
    for lane in lanes:  # `sum` corrects its rounding from Python 3.12 on
        total += lane
    assert loops.sum_of_squares(values).hex() == total.hex()
