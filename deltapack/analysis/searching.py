"""The best factor by few measurements: a coarse grid, then golden sections around its best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["GRID", "NARROW", "search_steps", "smallest"]

GRID = (0.4, 0.6, 0.8, 1.0, 1.2)
"""Multiples of a pack's own factor; far below 1 where so much was dropped that less of it is better."""
NARROW = (0.85, 1.0, 1.15)
"""Around a factor that is good already."""
_GOLDEN = (math.sqrt(5) - 1) / 2


def search_steps(grid: Sequence[float], sections: int) -> int:
    """Return how many measurements a search takes at most, besides that at 1."""
    return len(grid) - (1.0 in grid) + 1 + sections


def smallest(cost: Callable[[float], float], grid: Sequence[float], sections: int, *, at_one: float) -> tuple[float, float]:
    """Return where a cost is smallest, and how small; of equal ones the nearest to 1.

    The cost is taken to have one valley. Where its bottom is at an end of the grid, one more point is looked at beyond it.

    Args:
        cost: The cost of a factor above 0, no NaN.
        grid: Where to look first, rising; 1 is among it.
        sections: Golden sections between the neighbours of the best; each is one measurement.
        at_one: The cost at 1, which is known.

    >>> best, _ = smallest(lambda x: (x - 0.7) ** 2, GRID, 6, at_one=0.09)
    >>> round(best, 1)
    0.7
    """
    known = {1.0: at_one}

    def ask(factor: float) -> float:
        if factor not in known:
            known[factor] = cost(factor)
        return known[factor]

    for factor in grid:
        ask(factor)
    points = sorted(known)
    place = points.index(_best(known))
    if place in (0, len(points) - 1):  # beyond this end nobody has looked
        step = points[1] / points[0] if place == 0 else points[-1] / points[-2]
        ask(points[0] / step if place == 0 else points[-1] * step)
        points = sorted(known)
        place = points.index(_best(known))
    low, high = points[max(0, place - 1)], points[min(len(points) - 1, place + 1)]
    for _ in range(sections):
        centre = _best({factor: known[factor] for factor in known if low <= factor <= high})
        wide_above = high - centre >= centre - low
        far = high if wide_above else low
        new = centre + (1 - _GOLDEN) * (far - centre)
        if ask(new) < known[centre]:
            low, high = (centre, high) if wide_above else (low, centre)
        elif wide_above:
            high = new
        else:
            low = new
    best = _best(known)
    return best, known[best]


def _best(known: dict[float, float]) -> float:
    return min(known, key=lambda factor: (known[factor], abs(factor - 1), factor))
