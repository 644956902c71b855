"""Restored chunks in memory: each is made once, however many threads want it, and those that nobody asked for longest go first."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from deltapack.kernels.layout import Elements

__all__ = ["ChunkCache", "ChunkKey"]

ChunkKey = tuple[int, str, int]
"""Who owns a chunk (a number from `owner`), its tensor, its number there."""


class ChunkCache:
    """Chunks by key, within a bound; those in the making, and those that readers still hold, come on top.

    Attributes:
        limit: Bytes of chunks that are kept, at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: dict[ChunkKey, Elements] = {}
        self._making: dict[ChunkKey, threading.Lock] = {}
        self._bytes = 0
        self._owners = itertools.count()
        self._gone = set[int]()

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks that are kept."""
        return self._bytes

    def owner(self) -> int:
        """Return a number that nobody else has."""
        return next(self._owners)

    def get(self, key: ChunkKey, make: Callable[[], Elements]) -> Elements:
        """Return a chunk; `make` is called if it is not kept. Whoever comes while it is made waits, and tries himself where that failed."""
        while True:
            with self._lock:
                found = self._held.pop(key, None)
                if found is not None:
                    self._held[key] = found
                    return found
                latch = self._making.get(key)
                if latch is None:
                    own = self._making[key] = threading.Lock()
                    own.acquire()
                    break
            with latch:
                pass
        try:
            made = make()
            self.put(key, made)
            return made
        finally:
            with self._lock:
                del self._making[key]
            own.release()

    def knows(self, key: ChunkKey) -> bool:
        """Whether a chunk is kept or in the making."""
        with self._lock:
            return key in self._held or key in self._making

    def put(self, key: ChunkKey, chunk: Elements) -> None:
        """Keep a chunk, which nobody changes any more, unless it is larger than the bound."""
        if chunk.nbytes > self.limit:
            return
        with self._lock:
            if key[0] in self._gone:
                return
            former = self._held.pop(key, None)
            self._bytes += chunk.nbytes - (0 if former is None else former.nbytes)
            self._held[key] = chunk
            while self._bytes > self.limit:
                self._bytes -= self._held.pop(next(iter(self._held))).nbytes

    def forget(self, owner: int) -> None:
        """Drop the chunks of an owner, those that are still in the making, too."""
        with self._lock:
            self._gone.add(owner)
            for key in [key for key in self._held if key[0] == owner]:
                self._bytes -= self._held.pop(key).nbytes
