"""What a pass over a difference tells of its elements: sizes, a histogram, norms, rows that moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "DeltaStats", "class_edges", "combined", "stats_of"]

CLASSES = 512
"""Of a histogram over magnitudes: half octaves, by the exponent and the first bit of the fraction of an f32."""
_SHIFT = 22


@dataclass(frozen=True)
class DeltaStats:
    """What is known of the elements of a difference, or of a part of one; parts add up in order.

    Attributes:
        elements: Their number.
        unchanged: Those of which the difference is 0.
        odd: Those of which it is NaN or infinite; nothing else counts them.
        l1: Sum of magnitudes.
        squares: Sum of squares.
        base_squares: Sum of squares of the base, as far as it is finite.
        max_abs: Largest magnitude.
        counts: `[CLASSES]` int64, elements by the size of their difference.
    """

    elements: int
    unchanged: int
    odd: int
    l1: float
    squares: float
    base_squares: float
    max_abs: float
    counts: NDArray[np.int64]

    def __add__(self, other: DeltaStats) -> DeltaStats:
        return DeltaStats(
            self.elements + other.elements,
            self.unchanged + other.unchanged,
            self.odd + other.odd,
            self.l1 + other.l1,
            self.squares + other.squares,
            self.base_squares + other.base_squares,
            max(self.max_abs, other.max_abs),
            self.counts + other.counts,
        )

    @property
    def relative(self) -> float:
        """Norm of the difference over that of the base; 0 where that is 0."""
        return float((self.squares / self.base_squares) ** 0.5) if self.base_squares > 0 else 0.0

    @property
    def mean_abs(self) -> float:
        """Mean magnitude."""
        return self.l1 / self.elements if self.elements else 0.0

    def quantile(self, share: float) -> float:
        """Return the magnitude below which this share of the elements lies, as exact as a half octave allows; never above the largest."""
        wanted = share * float(self.counts.sum())
        if wanted <= 0:
            return 0.0
        sums = np.cumsum(self.counts)
        place = int(np.searchsorted(sums, wanted))
        low, high = class_edges()[place : place + 2]
        before = float(sums[place] - self.counts[place])
        return float(min(low + (high - low) * (wanted - before) / float(self.counts[place]), self.max_abs))


def class_edges() -> NDArray[np.float64]:
    """Return the `[CLASSES + 1]` magnitudes at which the classes of the histogram begin and end; the last are infinite."""
    bits = (np.arange(CLASSES + 1, dtype=np.uint32) << _SHIFT).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        values = bits.view(np.float32).astype(np.float64)
    return np.where(np.isfinite(values), values, np.inf)


def stats_of(delta: NDArray[np.float32], base: NDArray[np.float32]) -> DeltaStats:
    """Return the statistics of some elements.

    Args:
        delta: `[n]` f32, the difference; it is overwritten.
        base: `[n]` f32, the base.
    """
    finite = np.isfinite(delta)
    odd = len(delta) - int(np.count_nonzero(finite))
    if odd:
        delta[~finite] = 0
        base = np.where(np.isfinite(base), base, np.float32(0))
    np.abs(delta, out=delta)
    counts = np.bincount(delta.view(np.uint32) >> _SHIFT, minlength=CLASSES).astype(np.int64)
    counts[0] -= odd
    unchanged = len(delta) - odd - int(np.count_nonzero(delta))
    wide = delta.astype(np.float64)
    largest = float(delta.max(initial=0))
    base_squares = float(np.square(base, dtype=np.float64).sum())
    return DeltaStats(len(delta) - odd, unchanged, odd, float(wide.sum()), float(np.square(wide).sum()), base_squares, largest, counts)


def combined(parts: list[DeltaStats]) -> DeltaStats:
    """Return the statistics of several parts together."""
    return reduce(DeltaStats.__add__, parts, DeltaStats(0, 0, 0, 0.0, 0.0, 0.0, 0.0, np.zeros(CLASSES, np.int64)))
