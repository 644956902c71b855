"""Exact order statistics of tensors that do not fit in memory: which elements are the k largest in magnitude.

The bits of a non-negative f32 have the order of its value. So one streaming pass counts the high 15 bits, a second the low 16 bits of
those whose high bits are the k-th largest's, and a third, only where several elements equal the k-th, how many of them each chunk has:
of equal ones the first in the tensor are taken. Counts add up in any order, so the number of workers does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.engines import spread_map, with_engine
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.kernels.reference.choosing import HIGH, LOW, MAGNITUDE
from deltapack.sparsify.kept import TensorDelta

__all__ = ["Cut", "Magnitudes", "cuts_of", "find_cuts", "places_in_cut"]


@dataclass(frozen=True)
class Magnitudes:
    """A tensor whose elements are to be ranked.

    Attributes:
        chunks: Number of its chunks.
        read: Returns the elements of a chunk that compete, `[n] f32`; called several times.
        ranks: Takes the number of elements that are not zero and returns how many of the largest to take, for one or several cuts.
    """

    chunks: int
    read: Callable[[int], NDArray[np.float32]]
    ranks: Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Cut:
    """The k largest magnitudes of a tensor.

    Attributes:
        bits: Magnitudes above this f32, given by its bits, belong to them.
        ties: Of those equal to it, how many of each chunk belong to them, the first ones; empty where none does.
    """

    bits: int
    ties: tuple[int, ...] = ()


NOTHING = Cut(MAGNITUDE)
"""The largest magnitudes that are none: nothing is above these bits."""


def places_in_cut(chunk: int, elements: NDArray[np.float32], cut: Cut, outliers: Cut = NOTHING) -> NDArray[np.uint32]:
    """Return the places of the elements that are in a cut and not in another, increasing.

    Args:
        chunk: Number of their chunk.
        elements: The competing elements of the chunk, `[n] f32`.
        cut: The largest elements.
        outliers: The very largest, which are left out.
    """
    ties = [found.ties[chunk] if found.ties else 0 for found in (cut, outliers)]
    return kernels.active().places_between(elements, cut.bits, ties[0], outliers.bits, ties[1])


def cuts_of(delta: TensorDelta, *ranks: int) -> tuple[Cut, ...]:
    """Return the cuts of one difference of a tensor, one for each rank."""
    tensor = Magnitudes(
        chunk_count(delta.numel), lambda chunk: delta.read(chunk * CHUNK, min((chunk + 1) * CHUNK, delta.numel)), lambda nonzero: ranks
    )
    with with_engine(None):  # for one tensor, to send the checkpoints that it is read from takes longer than to count it
        return find_cuts([tensor], delta.workers)[0]


@dataclass(frozen=True)
class _Search:
    """A cut being looked for: the high bits of the last element taken, and how many to take among those of equal bits."""

    high: int
    left: int


def find_cuts(tensors: Sequence[Magnitudes], workers: int) -> list[tuple[Cut, ...]]:
    """Return the cuts of each tensor, one for each of its ranks. Memory does not grow with the tensors."""
    loops, searches = kernels.active(), list[list[_Search | Cut]]()
    for tensor, counted in zip(tensors, _counted(tensors, lambda _, elements: loops.histogram_high(elements), workers), strict=True):
        total = sum(counted, np.zeros(HIGH, np.int64))
        searches.append([_descend_high(total, rank) for rank in tensor.ranks(int(total.sum()))])
    open_ones = [number for number, found in enumerate(searches) if any(isinstance(search, _Search) for search in found)]
    highs = [[search.high if isinstance(search, _Search) else -1 for search in searches[number]] for number in open_ones]
    chosen = [tensors[number] for number in open_ones]

    def histogram_low(place: int, elements: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.stack([loops.histogram_low(elements, high) if high >= 0 else np.zeros(LOW, np.int64) for high in highs[place]])

    for number, counted in zip(open_ones, _counted(chosen, histogram_low, workers), strict=True):
        totals = sum(counted, np.zeros((len(searches[number]), LOW), np.int64))
        searches[number] = [_descend_low(search, row) for search, row in zip(searches[number], totals, strict=True)]
    _spread_ties(tensors, searches, workers)
    return [tuple(cut for cut in found if isinstance(cut, Cut)) for found in searches]


def _counted(
    tensors: Sequence[Magnitudes], count: Callable[[int, NDArray[np.float32]], NDArray[np.int64]], workers: int
) -> Iterator[Iterator[NDArray[np.int64]]]:
    """Yield, for each tensor, what `count` says of each of its chunks, in order; take all of one before the next."""

    def work(task: tuple[int, int]) -> NDArray[np.int64]:
        number, chunk = task
        return count(number, tensors[number].read(chunk))

    tasks = ((number, chunk) for number, tensor in enumerate(tensors) for chunk in range(tensor.chunks))
    with closing(spread_map(work, tasks, workers, size=lambda task: CHUNK)) as results:
        for tensor in tensors:  # also where it has no elements, so no chunks
            yield map(itemgetter(1), islice(results, tensor.chunks))


def _descend_high(counts: NDArray[np.int64], rank: int) -> _Search | Cut:
    if rank >= counts.sum():
        return Cut(0)
    if rank <= 0:
        return NOTHING
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    return _Search(HIGH - 1 - place, rank - int(from_top[place] - counts[HIGH - 1 - place]))


def _descend_low(search: _Search | Cut, counts: NDArray[np.int64]) -> _Search | Cut:
    """Return the cut; its `ties` still is the total number to take, or a search of one where all equal ones are taken."""
    if isinstance(search, Cut):
        return search
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, search.left))
    low = LOW - 1 - place
    bits, wanted = search.high << 16 | low, search.left - int(from_top[place] - counts[low])
    return Cut(bits - 1) if wanted == counts[low] else Cut(bits, (wanted,))


def _spread_ties(tensors: Sequence[Magnitudes], searches: list[list[_Search | Cut]], workers: int) -> None:
    """Say how many of the equal elements each chunk gives, where not all of them are taken."""
    loops = kernels.active()
    tied = [number for number, found in enumerate(searches) if any(isinstance(cut, Cut) and cut.ties for cut in found)]
    values = [[cut.bits if isinstance(cut, Cut) else 0 for cut in searches[number]] for number in tied]

    def count(place: int, elements: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.array([loops.histogram_low(elements, value >> 16)[value & LOW - 1] for value in values[place]])

    for number, counted in zip(tied, _counted([tensors[number] for number in tied], count, workers), strict=True):
        rows = np.array(list(counted)).T
        for place, cut in enumerate(searches[number]):
            if isinstance(cut, Cut) and cut.ties:
                before = np.cumsum(rows[place]) - rows[place]
                given = np.clip(cut.ties[0] - before, 0, rows[place])
                searches[number][place] = Cut(cut.bits, tuple(map(int, given)))
