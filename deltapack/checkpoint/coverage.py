"""Which elements of a tensor were written."""

from __future__ import annotations

import bisect

__all__ = ["Coverage"]


class Coverage:
    """Disjoint ranges, sorted, merged where they touch."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.stops: list[int] = []

    def add(self, start: int, stop: int) -> bool:
        """Add a range; false if part of it was there already."""
        at = bisect.bisect_right(self.starts, start)
        if (at > 0 and self.stops[at - 1] > start) or (at < len(self.starts) and self.starts[at] < stop):
            return False
        joins_left = at > 0 and self.stops[at - 1] == start
        joins_right = at < len(self.starts) and self.starts[at] == stop
        if joins_left and joins_right:
            self.stops[at - 1] = self.stops.pop(at)
            del self.starts[at]
        elif joins_left:
            self.stops[at - 1] = stop
        elif joins_right:
            self.starts[at] = start
        else:
            self.starts.insert(at, start)
            self.stops.insert(at, stop)
        return True

    @property
    def count(self) -> int:
        """Number of elements written."""
        return sum(self.stops) - sum(self.starts)
