"""Exact order statistics of tensors that do not fit in memory: which elements are the k largest in magnitude.

The bits of a non-negative f32 have the order of its value. So one streaming pass counts the high 15 bits, a second the low 16 bits of
those whose high bits are the k-th largest's, and a third, only where several elements equal the k-th, how many of them each chunk has:
of equal ones the first in the tensor are taken. Counts add up in any order, so the number of workers does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from deltapack.parallel import ordered_map

__all__ = ["Cut", "Magnitudes", "find_cuts", "magnitude_bits"]

_HIGH, _LOW = 1 << 15, 1 << 16
_NOTHING = (1 << 31) - 1
"""No magnitude is above these bits."""


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

    def mask(self, chunk: int, elements: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which of the competing elements of a chunk, `[n] f32`, belong to the largest, `[n] bool`."""
        bits = magnitude_bits(elements)
        taken: NDArray[np.bool_] = bits > self.bits
        if self.ties:
            taken[np.flatnonzero(bits == self.bits)[: self.ties[chunk]]] = True
        return taken


def magnitude_bits(elements: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bits of the magnitudes, whose order is that of the magnitudes."""
    return np.ascontiguousarray(elements).view(np.uint32) & np.uint32(_NOTHING)


@dataclass(frozen=True)
class _Search:
    """A cut being looked for: the high bits of the last element taken, and how many to take among those of equal bits."""

    high: int
    left: int


def find_cuts(tensors: Sequence[Magnitudes], workers: int) -> list[tuple[Cut, ...]]:
    """Return the cuts of each tensor, one for each of its ranks. Memory does not grow with the tensors."""
    searches: list[list[_Search | Cut]] = []
    for tensor, counted in zip(tensors, _counted(tensors, _count_high, workers), strict=True):
        total = sum(counted, np.zeros(_HIGH + 1, np.int64))
        nonzero = int(total[-1])
        total[0] -= total.sum() - 2 * nonzero  # zeros do not compete
        searches.append([_descend_high(total[:-1], rank, nonzero) for rank in tensor.ranks(nonzero)])
    open_ones = [number for number, found in enumerate(searches) if any(isinstance(search, _Search) for search in found)]
    highs = [[search.high if isinstance(search, _Search) else -1 for search in searches[number]] for number in open_ones]
    chosen = [tensors[number] for number in open_ones]
    for number, counted in zip(open_ones, _counted(chosen, lambda place, bits: _count_low(highs[place], bits), workers), strict=True):
        totals = sum(counted, np.zeros((len(searches[number]), _LOW), np.int64))
        searches[number] = [_descend_low(search, row) for search, row in zip(searches[number], totals, strict=True)]
    _spread_ties(tensors, searches, workers)
    return [tuple(cut for cut in found if isinstance(cut, Cut)) for found in searches]


def _counted(
    tensors: Sequence[Magnitudes], count: Callable[[int, NDArray[np.uint32]], NDArray[np.int64]], workers: int
) -> Iterator[Iterator[NDArray[np.int64]]]:
    """Yield, for each tensor, what `count` says of each of its chunks, in order."""

    def work(task: tuple[int, int]) -> tuple[int, NDArray[np.int64]]:
        return task[0], count(task[0], magnitude_bits(tensors[task[0]].read(task[1])))

    tasks = ((number, chunk) for number, tensor in enumerate(tensors) for chunk in range(tensor.chunks))
    with closing(ordered_map(work, tasks, workers)) as results:
        for _, group in groupby(results, key=lambda result: result[0]):
            yield (counts for _, counts in group)


def _count_high(place: int, bits: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return how many elements have each value of the high bits, and how many are not zero."""
    counts = np.bincount(bits >> np.uint32(16), minlength=_HIGH)
    return np.append(counts, np.count_nonzero(bits))


def _count_low(highs: Sequence[int], bits: NDArray[np.uint32]) -> NDArray[np.int64]:
    return np.stack([np.bincount(bits[bits >> np.uint32(16) == high] & np.uint32(_LOW - 1), minlength=_LOW) for high in highs])


def _descend_high(counts: NDArray[np.int64], rank: int, nonzero: int) -> _Search | Cut:
    if rank >= nonzero:
        return Cut(0)
    if rank <= 0:
        return Cut(_NOTHING)
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    return _Search(_HIGH - 1 - place, rank - int(from_top[place] - counts[_HIGH - 1 - place]))


def _descend_low(search: _Search | Cut, counts: NDArray[np.int64]) -> _Search | Cut:
    """Return the cut; its `ties` still is the total number to take, or a search of one where all equal ones are taken."""
    if isinstance(search, Cut):
        return search
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, search.left))
    low = _LOW - 1 - place
    bits, wanted = search.high << 16 | low, search.left - int(from_top[place] - counts[low])
    return Cut(bits - 1) if wanted == counts[low] else Cut(bits, (wanted,))


def _spread_ties(tensors: Sequence[Magnitudes], searches: list[list[_Search | Cut]], workers: int) -> None:
    """Say how many of the equal elements each chunk gives, where not all of them are taken."""
    tied = [number for number, found in enumerate(searches) if any(isinstance(cut, Cut) and cut.ties for cut in found)]
    values = [[cut.bits if isinstance(cut, Cut) else 0 for cut in searches[number]] for number in tied]

    def count(place: int, bits: NDArray[np.uint32]) -> NDArray[np.int64]:
        return np.array([np.count_nonzero(bits == value) for value in values[place]])

    for number, counted in zip(tied, _counted([tensors[number] for number in tied], count, workers), strict=True):
        rows = np.array(list(counted)).T
        for place, cut in enumerate(searches[number]):
            if isinstance(cut, Cut) and cut.ties:
                before = np.cumsum(rows[place]) - rows[place]
                given = np.clip(cut.ties[0] - before, 0, rows[place])
                searches[number][place] = Cut(cut.bits, tuple(map(int, given)))
