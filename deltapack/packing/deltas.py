"""Differences of one tensor to its partner: read in pieces, sampled, summed by rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.format.digest import CHUNK
from deltapack.kernels.buffers import Buffers

__all__ = ["Delta", "moved_rows", "rows_at", "runs_of", "sampled", "squares_of_rows"]

Values = NDArray[np.float32]

_RUN, _RUNS = 4096, 64
"""Elements of a run that is sampled, and how many there are at most: so many tell a gain to about 0.3 %."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Delta:
    """The difference of a tensor to its partner.

    Attributes:
        base: The base.
        finetuned: The fine-tune.
        tensor: The tensor.
        partner: Its partner.
    """

    base: Checkpoint
    finetuned: Checkpoint
    tensor: TensorInfo
    partner: TensorInfo

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
        """Return a function that reads differences [start, stop), `[n] f32`; they are valid until the thread reads again."""
        buffers = Buffers()

        def read(start: int, stop: int) -> Values:
            tuned = buffers.take("finetuned", self.tensor.dtype.storage, stop - start)
            elements = buffers.take("base", self.partner.dtype.storage, stop - start)
            self.finetuned.read_into(self.tensor.name, start, tuned)
            self.base.read_into(self.partner.name, start, elements)
            out: Values = buffers.take("difference", "<f4", stop - start).view(np.float32)
            return kernels.active().difference(elements, self.partner.dtype, tuned, self.tensor.dtype, out)

        return read


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


def sampled(delta: Delta, rest: Callable[[Values, int, int], Values] | None = None) -> Values:
    """Return a sample of the differences, `[n] f32`.

    Args:
        delta: The difference.
        rest: Returns what is left of elements [start, start + length), which it is given, when something is taken off before.
    """
    read, parts = delta.reader(), []
    for start, stop in runs_of(delta.common):
        part = read(start, stop)
        parts.append(part.copy() if rest is None else rest(part, start, stop - start))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def squares_of_rows(delta: Delta) -> NDArray[np.float64]:
    """Return the sums of squares over the rows of a difference, `[rows] f64`; reads all of it."""
    read, columns = delta.reader(), delta.columns
    out = np.zeros(delta.rows)
    step = max(1, CHUNK // columns)
    with np.errstate(over="ignore"):
        for first in range(0, delta.rows, step):
            last = min(first + step, delta.rows)
            block = read(first * columns, last * columns).reshape(-1, columns)
            out[first:last] = np.square(block, out=block).sum(1)
    return out


def moved_rows(squares: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Return which rows have moved: their root mean square is at least `share` of the one that energy sees, `[rows] bool`."""
    energy = squares.sum()
    if not energy > 0:
        return np.zeros(len(squares), np.bool_)
    moved: NDArray[np.bool_] = squares >= share * share * np.square(squares).sum() / energy
    return moved


def rows_at(delta: Delta, rows: NDArray[np.int64]) -> Values:
    """Return some rows of a difference, `[n, columns] f32`."""
    read, columns = delta.reader(), delta.columns
    out = np.empty((len(rows), columns), np.float32)
    for place, row in enumerate(rows.tolist()):
        out[place] = read(row * columns, (row + 1) * columns)
    return out
