"""Differences of one tensor to its partner: read in pieces, sampled, summed by rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.factors import Factors
from deltapack.format.digest import CHUNK
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.parallel import ordered_map

__all__ = ["Delta", "Passing", "moved_rows", "rows_at", "runs_of", "sampled", "squares_of_rows", "squares_of_some_rows"]

Values = NDArray[np.float32]

_RUN, _RUNS = 1024, 64
"""Elements of a run that is sampled, and how many there are at most: so many tell a gain to about 0.4 %."""
_TOGETHER = 1 << 31
"""Elements in which runs are counted together."""
_TOGETHER_ROWS = 16
"""Rows that are looked at together where not all are."""
_BLOCK = CHUNK // 4
"""Elements that are read at once where all are: they stay in the second-level cache."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Delta:
    """The difference of a tensor to its partner.

    Attributes:
        base: The base.
        finetuned: The fine-tune.
        tensor: The tensor.
        partner: Its partner.
        buffers: What elements are read into; differences that are read in turn share it, so that its memory is faulted in once.
    """

    base: Checkpoint
    finetuned: Checkpoint
    tensor: TensorInfo
    partner: TensorInfo
    buffers: Buffers = field(default_factory=Buffers)

    @property
    def common(self) -> int:
        """Number of leading elements that both have."""
        return min(self.tensor.numel, self.partner.numel)

    @property
    def columns(self) -> int:
        """Its last dimension; all elements where it has fewer than two."""
        return self.tensor.shape[-1] if len(self.tensor.shape) > 1 else self.common

    @property
    def rows(self) -> int:
        """Rows of the matrix that it is looked at as."""
        return self.common // self.columns

    def reader(self) -> Callable[[int, int], Values]:
        """Return a function that reads differences [start, stop), `[n] f32`; they are valid until the thread reads into these buffers."""
        return lambda start, stop: self.at([(start, stop)])

    def at(self, runs: Sequence[tuple[int, int]]) -> Values:
        """Return the differences of runs [start, stop) one after the other, `[n] f32`; they are valid as long."""
        out: Values = self.buffers.take("difference", "<f4", sum(stop - start for start, stop in runs)).view(np.float32)
        elements, tuned = self.elements(runs)
        return kernels.active().difference(elements, self.partner.dtype, tuned, self.tensor.dtype, out)

    def times(self, start: int, stop: int, right: Values, scale: np.float32) -> Values:
        """Return the differences of whole rows, [start, stop), times a number and the rows of a matrix `[k, columns]`: `[n, k] f32`."""
        elements, tuned = self.elements([(start, stop)])
        return kernels.active().difference_times(elements, self.partner.dtype, tuned, self.tensor.dtype, right, scale)

    def elements(self, runs: Sequence[tuple[int, int]]) -> tuple[Elements, Elements]:
        """Return the elements of runs of the base and of the fine-tune; they are valid as long."""
        size = sum(stop - start for start, stop in runs)
        tuned = self.buffers.take("finetuned", self.tensor.dtype.storage, size)
        elements = self.buffers.take("base", self.partner.dtype.storage, size)
        place = 0
        for start, stop in runs:
            end = place + stop - start
            self.finetuned.read_into(self.tensor.name, start, tuned[place:end])
            self.base.read_into(self.partner.name, start, elements[place:end])
            place = end
        return elements, tuned


def runs_of(numel: int) -> list[tuple[int, int]]:
    """Return ranges of elements spread over a tensor, all of it where it is small.

    They lie at irregular places: those of columns are regular.

    >>> runs_of(5000)
    [(0, 5000)]
    """
    if numel <= _RUN * _RUNS:
        return [(0, numel)]
    places = numel / _RUNS
    starts = [min(int((run + run * _GOLDEN % 1) * places), numel - _RUN) for run in range(_RUNS)]
    return [(start, start + _RUN) for start in starts]


class Passing:
    """A difference that is multiplied in one pass, of which a sample is kept on the way: to read it by itself costs as much again.

    Args:
        delta: The difference.
    """

    def __init__(self, delta: Delta) -> None:
        self.delta = delta
        self._runs = runs_of(delta.common)
        self._ends = [stop for _, stop in self._runs]
        self._parts = dict[tuple[int, int], Values]()

    def times(self, start: int, stop: int, right: Values, scale: np.float32) -> Values:
        """Return what `Delta.times` does."""
        delta, loops = self.delta, kernels.active()
        elements, tuned = delta.elements([(start, stop)])
        for number in range(bisect_right(self._ends, start), len(self._runs)):
            first, last = max(self._runs[number][0], start), min(self._runs[number][1], stop)
            if first >= last:
                break
            part = slice(first - start, last - start)
            self._parts[number, first] = loops.difference(elements[part], delta.partner.dtype, tuned[part], delta.tensor.dtype)
        return loops.difference_times(elements, delta.partner.dtype, tuned, delta.tensor.dtype, right, scale)

    def sample(self) -> Values:
        """Return the sample, once all has passed, `[n] f32`: that of `sampled`."""
        return np.concatenate([self._parts[place] for place in sorted(self._parts)])


def sampled(delta: Delta, factors: Factors | None = None, raw: Values | None = None) -> Values:
    """Return a sample of the differences, `[n] f32`, or of what factors leave of them.

    Args:
        delta: The difference.
        factors: What is taken off.
        raw: The sample as it is, if it was kept before.
    """
    parts, done = list[Values](), 0
    for start, runs in _near(runs_of(delta.common)):
        size = sum(last - first for first, last in runs)
        values = delta.at(runs) if raw is None else raw[done : done + size]
        done += size
        if factors is not None:
            places = np.concatenate([np.arange(first - start, last - start, dtype=np.uint32) for first, last in runs])
            values = factors.residual(values, start, runs[-1][1] - start, places)
        parts.append(values.copy())
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _near(runs: list[tuple[int, int]]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield runs together that u32 can count the elements of, and where these begin."""
    for _, group in groupby(runs, key=lambda run: run[0] // _TOGETHER):
        several = list(group)
        yield several[0][0], several


def squares_of_rows(delta: Delta, workers: int = 1) -> NDArray[np.float64]:
    """Return the sums of squares over the rows of a difference, `[rows] f64`; reads all of it, with so many threads."""
    read, columns = delta.reader(), delta.columns
    step = max(1, _BLOCK // columns)

    def squares(first: int) -> NDArray[np.float64]:
        block = read(first * columns, min(first + step, delta.rows) * columns).reshape(-1, columns)
        sums: NDArray[np.float64] = np.square(block, dtype=np.float64).sum(1)
        return sums

    with closing(ordered_map(squares, range(0, delta.rows, step), workers)) as parts:
        return np.concatenate([np.zeros(0), *parts])


def squares_of_some_rows(delta: Delta, share: int) -> NDArray[np.float64]:
    """Return the sums of squares over one of so many rows, some that lie together at a time, `[n] f64`."""
    columns, together = delta.columns, _TOGETHER_ROWS
    firsts = range(0, delta.rows, share * together)
    runs = [(first * columns, min(first + together, delta.rows) * columns) for first in firsts]
    step = max(1, _BLOCK // (together * columns))
    blocks = (delta.at(runs[first : first + step]).reshape(-1, columns) for first in range(0, len(runs), step))
    return np.concatenate([np.zeros(0), *(np.square(block, dtype=np.float64).sum(1) for block in blocks)])


def moved_rows(squares: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Return which rows have moved: their root mean square is at least `share` of the one that energy sees, `[rows] bool`."""
    largest = squares.max(initial=0)
    if not 0 < largest < np.inf:
        return np.zeros(len(squares), np.bool_)
    relative = squares / largest  # whose squares are numbers
    moved: NDArray[np.bool_] = relative >= share * share * np.square(relative).sum() / relative.sum()
    return moved


def rows_at(delta: Delta, rows: NDArray[np.int64]) -> Values:
    """Return some rows of a difference, `[n, columns] f32`."""
    columns, step = delta.columns, max(1, _BLOCK // delta.columns)
    out = np.empty((len(rows), columns), np.float32)
    for first in range(0, len(rows), step):
        part = [(row * columns, (row + 1) * columns) for row in rows[first : first + step].tolist()]
        out[first : first + step] = delta.at(part).reshape(-1, columns)
    return out
