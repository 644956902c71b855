"""Tensors whose elements lie in a file in another order than theirs, as a transposed view that PyTorch has saved.

They are read, not mapped: a file that is cut while it is mapped ends the process. What is read at once is a slab, up to `_SLAB` bytes of
the tensor, in as few and as long reads as its strides allow; the last used ones are kept, for all threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.arranging import Tiles
from deltapack.checkpoint.files import bytes_of
from deltapack.checkpoint.tensors import ArraySource
from deltapack.sources.reading import Readable

__all__ = ["SLABS", "StridedSource"]

Elements = npt.NDArray[np.generic]

_SLAB = 32 << 20
_SEGMENT = 8 << 20
_LOOSE = 2
"""How many times more than is needed may be read to have it in one go."""
_NEAR = 2048
"""Bytes from one element that is needed to the next for which another read costs more than what is between."""
SLABS = Tiles(2 * _SLAB)
"""Those of this process, of all files together."""


@dataclass(frozen=True, eq=False)
class StridedSource:
    """Elements of a view; see `deltapack.checkpoint.tensors.Source`.

    Attributes:
        file: The file.
        offset: Where the first element lies, in bytes.
        shape: Dimensions, at least one; none is 0.
        strides: Elements from one index to the next in each dimension, none negative.
    """

    file: Readable
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read_into(self, start: int, out: Elements) -> None:
        """Fill `out` with the elements from `start` in row-major order."""
        most = max(1, _SLAB // out.itemsize)
        axis = next(at for at in range(len(self.shape)) if math.prod(self.shape[at + 1 :]) <= most)
        row, extent = math.prod(self.shape[axis + 1 :]), self.shape[axis]
        tall = max(1, min(extent, most // row))
        done = 0
        while done < len(out):
            outer, inside = divmod(start + done, extent * row)
            number, first = divmod(inside, tall * row)
            slab = SLABS.get((self, out.dtype.str, outer, number), partial(self._slab, axis, outer, number, tall, out.dtype))
            count = min(len(out) - done, slab.size - first)
            ArraySource(slab).read_into(first, out[done : done + count])
            done += count

    def _slab(self, axis: int, outer: int, number: int, tall: int, dtype: np.dtype[np.generic]) -> Elements:
        """Read a slab: indices of one axis from `number * tall` on, all of the axes after it, one index of those before it."""
        at = number * tall * self.strides[axis]
        for size, stride in zip(reversed(self.shape[:axis]), reversed(self.strides[:axis]), strict=True):
            outer, index = divmod(outer, size)
            at += index * stride
        shape = (min(tall, self.shape[axis] - number * tall), *self.shape[axis + 1 :])
        order = sorted(range(len(shape)), key=lambda dimension: -self.strides[axis + dimension])
        box = np.empty([shape[dimension] for dimension in order], dtype)
        self._fill(box, at, [self.strides[axis + dimension] for dimension in order])
        return box.transpose(np.argsort(order))

    def _fill(self, box: Elements, at: int, strides: Sequence[int]) -> None:
        """Fill a box whose strides in the file do not increase from one dimension to the next, from element `at` on."""
        extent, step = len(box), strides[0] * box.itemsize
        inner = 1 + sum((size - 1) * stride for size, stride in zip(box.shape[1:], strides[1:], strict=True))
        near = step <= _NEAR or (extent - 1) * strides[0] + inner <= _LOOSE * box.size
        if near or box.ndim == 1:
            count = extent if step == 0 else max(1, _SEGMENT // step) if near else 1
            if box.ndim == 1 or count > 1 or extent == 1:
                for first in range(0, extent, count):
                    self._segment(box[first : first + count], at + first * strides[0], inner, strides)
                return
        if [stride * box.itemsize for stride in strides[1:]] == list(box.strides[1:]):  # an index has its elements one after another
            view, size = bytes_of(box.reshape(-1)), box[0].nbytes
            for index in range(extent):
                self.file.read_into(self.offset + at * box.itemsize + index * step, view[index * size : (index + 1) * size])
            return
        for index in range(extent):
            self._fill(box[index], at + index * strides[0], strides[1:])

    def _segment(self, box: Elements, at: int, inner: int, strides: Sequence[int]) -> None:
        """Fill a box by one read, of all that lies between its first and its last element; `inner` is that of one index."""
        flat = np.empty((len(box) - 1) * strides[0] + inner, box.dtype)
        self.file.read_into(self.offset + at * box.itemsize, bytes_of(flat))
        box[...] = np.lib.stride_tricks.as_strided(flat, box.shape, [stride * box.itemsize for stride in strides], writeable=False)
