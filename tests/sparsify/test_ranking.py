"""The k largest elements, found by counting, are those that sorting finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from support.laws import examples

from deltapack.sparsify.ranking import Cut, Magnitudes, find_cuts, places_in_cut

EDGES = np.array([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -3e38, np.inf], np.float32)
VALUES = st.one_of(st.sampled_from(EDGES.tolist()), st.floats(width=32, allow_nan=False))


def largest(values: np.ndarray, rank: int) -> NDArray[np.bool_]:
    """The `rank` largest magnitudes that are not zero; of equal ones the first."""
    mask = np.zeros(len(values), np.bool_)
    mask[np.argsort(-np.abs(values), kind="stable")[:rank]] = True
    mask[values == 0] = False
    return mask


def taken(parts: list[np.ndarray], *cuts: Cut) -> np.ndarray:
    """Which elements are in the first cut and not in the second."""
    masks = [np.isin(np.arange(len(part)), places_in_cut(chunk, part, *cuts)) for chunk, part in enumerate(parts)]
    return np.concatenate(masks)


@examples(60)
@given(
    values=arrays(np.float32, st.integers(1, 60), elements=VALUES),
    chunks=st.integers(1, 4),
    ranks=st.lists(st.integers(-1, 70), min_size=1, max_size=3),
    workers=st.integers(1, 3),
)
def test_cuts_are_what_sorting_gives(values: np.ndarray, chunks: int, ranks: list[int], workers: int) -> None:
    parts = np.array_split(values, chunks)
    tensor = Magnitudes(chunks, parts.__getitem__, lambda nonzero: ranks)
    other = Magnitudes(1, lambda chunk: np.ones(3, np.float32), lambda nonzero: [nonzero - 1])
    cuts = find_cuts([other, tensor, other], workers)
    assert cuts[0] == cuts[2] and list(places_in_cut(0, np.ones(3, np.float32), cuts[0][0])) == [0, 1]
    for rank, cut in zip(ranks, cuts[1], strict=True):
        assert np.array_equal(taken(parts, cut), largest(values, max(0, rank)))
        found = taken(parts, cut, cuts[1][-1])
        assert np.array_equal(found, largest(values, max(0, rank)) & ~largest(values, max(0, ranks[-1])))


def test_ranks_may_depend_on_how_many_are_not_zero() -> None:
    seen: list[int] = []

    def ranks(nonzero: int) -> list[int]:
        seen.append(nonzero)
        return [1]

    tensor = Magnitudes(2, lambda chunk: np.array([0, -0.0, chunk, 2], np.float32), ranks)
    ((cut,),) = find_cuts([tensor], 1)
    assert seen == [3]
    assert [len(places_in_cut(chunk, tensor.read(chunk), cut)) for chunk in (0, 1)] == [1, 0]
