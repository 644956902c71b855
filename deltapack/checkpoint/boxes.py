"""A tensor that lies in boxes, each stored somewhere: the pieces that the ranks of a training run have written of it.

The boxes may cut the tensor along any dimensions, at any places. A range of elements is cut into blocks that are whole in all dimensions
behind one; what a box has of such a block lies in one run of the box, so each box is read once for a block, and no more than is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.tensors import Source

__all__ = ["Box", "BoxedSource", "flaw_of"]

_MOST_UNEVEN = 4096
"""Boxes of a tensor that are in no grid; each is compared with every other."""


@dataclass(frozen=True)
class Box:
    """A part of a tensor.

    Attributes:
        start: Its first element in each dimension.
        extent: Its extent there.
        source: Its elements, in row-major order of the box.
    """

    start: tuple[int, ...]
    extent: tuple[int, ...]
    source: Source


@dataclass(frozen=True)
class BoxedSource:
    """Elements of a tensor in boxes; see `deltapack.checkpoint.tensors.Source`. Made by `BoxedSource.of`."""

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    @classmethod
    def of(cls, boxes: Sequence[Box]) -> BoxedSource:
        """Prepare to read the tensor that boxes fill, of one dimension at least; `flaw_of` finds nothing wrong with them."""
        starts = np.array([box.start for box in boxes], np.int64)
        stops = starts + np.array([box.extent for box in boxes], np.int64)
        return cls(tuple(map(int, stops.max(axis=0))), tuple(boxes), starts, stops)

    def read_into(self, start: int, out: npt.NDArray[np.generic]) -> None:
        """Fill `out` with the elements from `start` in row-major order."""
        done = 0
        for first, extent in _blocks(start, start + len(out), self.shape):
            count = math.prod(extent)
            self._fill(first, out[done : done + count].reshape(extent))
            done += count

    def _fill(self, first: tuple[int, ...], out: npt.NDArray[np.generic]) -> None:
        """Fill `out` with the block that begins at `first`."""
        low = np.maximum(self.starts, first)
        high = np.minimum(self.stops, np.add(first, out.shape))
        for at in np.flatnonzero((low < high).all(axis=1)):
            box, inside = self.boxes[at], low[at] - self.starts[at]
            extent = tuple(int(count) for count in high[at] - low[at])
            offset = 0
            for index, size in zip(inside, box.extent, strict=True):
                offset = offset * size + int(index)
            place = tuple(slice(int(a), int(a) + count) for a, count in zip(low[at] - first, extent, strict=True))
            part = out[place]
            if part.flags.c_contiguous:
                box.source.read_into(offset, part.reshape(-1))
                continue
            run = np.empty(math.prod(extent), out.dtype)
            box.source.read_into(offset, run)
            part[...] = run.reshape(extent)


def _blocks(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut elements [start, stop) into blocks of one index in the first dimensions, some of the next, and all of the others.

    Yields:
        First index and extent in each dimension; one after the other they are the range.
    """
    sizes = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    while start < stop:
        first = tuple(start // size % dimension for size, dimension in zip(sizes, shape, strict=True))
        # The widest rows that begin here and do not reach beyond the end.
        at = next(at for at, size in enumerate(sizes) if start % size == 0 and size <= stop - start)
        count = min((stop - start) // sizes[at], shape[at] - first[at])
        yield first, (*(1,) * at, count, *shape[at + 1 :])
        start += count * sizes[at]


def flaw_of(shape: tuple[int, ...], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> str | None:
    """Return what is wrong with boxes, as start and extent, that are to fill a tensor once; none where nothing is.

    Args:
        shape: The dimensions of the tensor, none of them 0.
        boxes: Start and extent of each box, of the rank of the tensor, with no negative number.
    """
    for start, extent in boxes:
        if any(first + count > size for first, count, size in zip(start, extent, shape, strict=True)):
            return f"a piece at {list(start)} of {list(extent)} reaches beyond the tensor"
    filled = sum(math.prod(extent) for _, extent in boxes)
    if filled != math.prod(shape):
        return f"pieces with {filled} elements together"
    if not _is_grid(shape, boxes) and _overlap(boxes):
        return "pieces that overlap" if len(boxes) <= _MOST_UNEVEN else f"{len(boxes)} pieces that are in no grid"
    return None


def _is_grid(shape: tuple[int, ...], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether the boxes are the cells of a grid, each once."""
    cuts = [[*sorted({start[at] for start, _ in boxes}), size] for at, size in enumerate(shape)]
    if math.prod(len(own) - 1 for own in cuts) != len(boxes) or any(own[0] for own in cuts):
        return False
    steps = [{low: high - low for low, high in pairwise(own)} for own in cuts]
    return len({start for start, _ in boxes}) == len(boxes) and all(
        extent == tuple(step[first] for step, first in zip(steps, start, strict=True)) for start, extent in boxes
    )


def _overlap(boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether two boxes have an element in common; too many to be compared count as if they had."""
    if len(boxes) > _MOST_UNEVEN:
        return True
    starts = np.array([start for start, _ in boxes], np.int64)
    stops = starts + np.array([extent for _, extent in boxes], np.int64)
    return any(((starts[at + 1 :] < stops[at]) & (stops[at + 1 :] > starts[at])).all(axis=1).any() for at in range(len(boxes) - 1))
