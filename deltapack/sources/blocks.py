"""Pieces of remote files in memory: what was read or is on its way is not asked for twice, within a bound for the whole process."""

from __future__ import annotations

from collections import OrderedDict

from deltapack.forks import forking_lock

__all__ = ["BLOCKS", "GRAIN", "Blocks"]

GRAIN = 1 << 16
"""Bytes of a piece: small enough for a look at a header, and many are asked for in one request."""
_MOST_BYTES = 128 << 20


class Blocks:
    """The pieces last used of any number of files.

    Args:
        most: Bytes that they may have together.
    """

    def __init__(self, most: int = _MOST_BYTES) -> None:
        self._most, self._bytes = most, 0
        self._pieces: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = forking_lock()

    def get(self, file: int, number: int) -> bytes | None:
        """Return a piece of a file, if it is there."""
        with self._lock:
            piece = self._pieces.get((file, number))
            if piece is not None:
                self._pieces.move_to_end((file, number))
            return piece

    def has(self, file: int, number: int) -> bool:
        """Whether a piece is there."""
        with self._lock:
            return (file, number) in self._pieces

    def put(self, file: int, first: int, data: bytes) -> None:
        """Keep the pieces from `first` on that `data` is made of."""
        with self._lock:
            for at in range(0, len(data), GRAIN):
                key, piece = (file, first + at // GRAIN), data[at : at + GRAIN]
                self._bytes += len(piece) - len(self._pieces.pop(key, b""))
                self._pieces[key] = piece
            while self._bytes > self._most:
                self._bytes -= len(self._pieces.popitem(last=False)[1])

    def drop(self, file: int) -> None:
        """Forget a file."""
        with self._lock:
            for key in [key for key in self._pieces if key[0] == file]:
                self._bytes -= len(self._pieces.pop(key))


BLOCKS = Blocks()
"""Those of this process."""
