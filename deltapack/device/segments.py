"""Large buffers that streams are put into on their way to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import Bytes

__all__ = ["ALIGNMENT", "NOWHERE", "SEGMENT_BYTES", "Segments", "Stream", "padded"]

ALIGNMENT = 16
SEGMENT_BYTES = 64 << 20


class Stream(NamedTuple):
    """Where bytes lie: segment, offset there, a multiple of 16, and how many. None of them: there is no such stream."""

    segment: int
    offset: int
    nbytes: int


NOWHERE = Stream(0, 0, 0)


class Segments:
    """Buffers that fill up one after the other; full ones are handed on, so that sending overlaps with decoding.

    Args:
        allocate: Returns a buffer of so many bytes.
        send: Takes a buffer and how many of its bytes are used; called in order.
        size: Bytes of a buffer, unless a single stream needs more.
    """

    def __init__(self, allocate: Callable[[int], Bytes], send: Callable[[Bytes, int], None], size: int = SEGMENT_BYTES) -> None:
        self._allocate, self._send, self._size = allocate, send, size
        self._buffer: Bytes = np.zeros(0, np.uint8)
        self._used = 0
        self.number = 0

    def reserve(self, nbytes: int) -> None:
        """Make room, so that what is put next lies in one segment."""
        if self._used + nbytes > len(self._buffer):
            self.flush()
        if not len(self._buffer):
            self._buffer, self._used = self._allocate(max(self._size, nbytes)), 0

    def put(self, stream: Bytes) -> int:
        """Copy a stream to the end of the segment and return its offset there, a multiple of 16."""
        start, end = self._used, self._used + len(stream)
        self._buffer[start:end] = stream
        self._used = padded(end)
        return start

    def place(self, array: NDArray[Any]) -> Stream:
        """Copy a single array and return where it lies."""
        stream = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if not len(stream):
            return NOWHERE
        self.reserve(padded(len(stream)))
        return Stream(self.number, self.put(stream), len(stream))

    def flush(self) -> None:
        """Hand on what there is."""
        if len(self._buffer):
            self._send(self._buffer, min(self._used, len(self._buffer)))
            self._buffer, self.number = np.zeros(0, np.uint8), self.number + 1


def padded(nbytes: int) -> int:
    """Return `nbytes` rounded up to the alignment of streams."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
