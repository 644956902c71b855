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
from deltapack.sources.reading import Readable

__all__ = ["SLABS", "StridedSource"]

Elements = npt.NDArray[np.generic]

_SLAB = 32 << 20
_LOOSE = 2
"""How many times more than a part of a slab needs may be read to have it in one go."""
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
            part = slab[first : first + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

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
        return np.ascontiguousarray(box.transpose(np.argsort(order))).reshape(-1)

    def _fill(self, box: Elements, at: int, strides: Sequence[int]) -> None:
        """Fill a box whose strides in the file do not increase from one dimension to the next, from element `at` on."""
        span = 1 + sum((size - 1) * stride for size, stride in zip(box.shape, strides, strict=True))
        if not strides or span <= _LOOSE * box.size:
            flat = np.empty(span, box.dtype)
            self.file.read_into(self.offset + at * box.itemsize, bytes_of(flat))
            box[...] = np.lib.stride_tricks.as_strided(flat, box.shape, [stride * box.itemsize for stride in strides], writeable=False)
            return
        for index in range(box.shape[0]):
            self._fill(box[index : index + 1].reshape(box.shape[1:]), at + index * strides[0], strides[1:])
