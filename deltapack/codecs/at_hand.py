"""What was decoded last, kept for the chunks that come next, within a number of bytes."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from deltapack.forks import forking_lock

__all__ = ["AtHand"]


@dataclass
class AtHand:
    """Keeps objects alive that others refer to weakly; the ones that were kept first are let go first.

    Attributes:
        most: Bytes that may be kept.
        least: How many are kept however large they are.
    """

    most: int
    least: int
    _kept: deque[tuple[object, int]] = field(default_factory=deque, repr=False)
    _lock: threading.Lock = field(default_factory=forking_lock, repr=False)
    _bytes: int = 0

    def keep(self, kept: object, nbytes: int) -> None:
        """Keep one more."""
        with self._lock:
            self._kept.append((kept, nbytes))
            self._bytes += nbytes
            while self._bytes > self.most and len(self._kept) > self.least:
                self._bytes -= self._kept.popleft()[1]
