"""Arrays that a thread uses again from chunk to chunk, so that their memory is faulted in once and stays in the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import SPARE, Sparse

__all__ = ["Buffers"]


class Buffers(threading.local):
    """Named arrays, each thread its own; they live as long as the thread and this object."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, str], NDArray[np.generic]] = {}

    def take(self, name: str, dtype: str, size: int) -> NDArray[np.generic]:
        """Return an array `[size]` of a numpy dtype string, with any content; valid until the same name is taken again."""
        array = self._arrays.get((name, dtype))
        if array is None or len(array) < size:
            array = self._arrays[name, dtype] = np.empty(size, dtype)
        return array[:size]

    def sparse(self, number: int, length: int) -> Sparse:
        """Return arrays for the positions and values of term `number` in a chunk of `length` elements, and 256 more, as loops want them."""
        positions = self.take(f"positions {number}", "<u4", length + SPARE).view(np.uint32)
        return Sparse(positions, self.take(f"values {number}", "<f4", length + SPARE).view(np.float32))

    def scratch(self, length: int) -> Iterator[Sparse]:
        """Yield such arrays for one term after the other, without end."""
        return (self.sparse(number, length) for number in count())
