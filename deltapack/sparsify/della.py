"""DELLA: drop at random, the smaller the likelier (MAGPRUNE; Deep et al., arXiv 2406.11617).

    rank r = 1..n of |delta| within its row, of equal ones the first is smaller
    P(keep) = (density - epsilon) + 2 epsilon (r - 1) / (n - 1)
    kept value = delta / P(keep), which keeps the expected delta unchanged

A row is the last dimension of the tensor, or the whole tensor if it has but one. Rows longer than 1,048,576 elements are ranked in
pieces of that length. mergekit rescales by one number per tensor instead, the ratio of L1 norms; `--rescale` gives one number, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, TILES_PER_CHUNK
from deltapack.sparsify.dare import ALL_KEPT
from deltapack.sparsify.kept import Kept, TensorDelta, kept_at

__all__ = ["USUAL_EPSILON", "Della", "epsilon_for", "plan", "probabilities"]

USUAL_EPSILON = 0.15


def epsilon_for(density: float, epsilon: float | None) -> float:
    """Return the half-width of the range of probabilities: 0.15 unless given, and less where that would leave (0, 1).

    Raises:
        RecipeError: The one given does.
    """
    room = min(density, 1 - density)
    if epsilon is None:
        return USUAL_EPSILON if room > USUAL_EPSILON else room / 2
    if not 0 <= epsilon < room:
        hint = "The probability to keep an element is density - epsilon to density + epsilon."
        raise RecipeError("epsilon is out of range", expected=f"0 <= epsilon < {room:g} at this drop rate", found=epsilon, hint=hint)
    return epsilon


def probabilities(length: int, density: float, epsilon: float) -> NDArray[np.float64]:
    """Return P(keep) by rank in a row of `length` elements, `[length]`."""
    share = np.arange(length) / (length - 1) if length > 1 else np.full(length, 0.5)
    return (density - epsilon) + 2 * epsilon * share


@lru_cache(maxsize=4)
def _by_rank(length: int, density: float, epsilon: float) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Return, by rank, the number below which a sample keeps an element, and what the kept value is multiplied with."""
    chances = probabilities(length, density, epsilon)
    return np.rint(chances * ALL_KEPT).astype(np.uint64), (1 / chances).astype(np.float32)


def plan(delta: TensorDelta) -> Della:
    """Return what keeps elements of a tensor; nothing has to be read before."""
    epsilon = delta.parameters["epsilon"]
    return Della(delta.density, epsilon, delta.key, delta.row, delta.numel, delta.read, delta.unbiased)


@dataclass(frozen=True)
class Della:
    """Keeps by chance and rank.

    Attributes:
        density: Mean probability to keep.
        epsilon: Half-width of its range.
        key: Mask key, 64 bits.
        row: Elements of a row.
        numel: Elements of the tensor.
        read: Returns differences [start, stop) of the tensor, `f32`: a row may begin before the chunk and end behind it.
        unbiased: Whether kept values are divided by their probability.
    """

    density: float
    epsilon: float
    key: int
    row: int
    numel: int
    read: Callable[[int, int], NDArray[np.float32]]
    unbiased: bool

    def select(self, chunk: int, delta: NDArray[np.float32]) -> Kept:
        """Return what is kept of a chunk."""
        start, stop, loops = chunk * CHUNK, chunk * CHUNK + len(delta), kernels.active()
        samples = loops.element_samples(self.key, chunk * TILES_PER_CHUNK, len(delta))
        positions, factors = [], []
        place = start
        while place < stop:
            first, last, length = self._rows(place, stop)
            whole = delta[first - start : last - start] if start <= first and last <= stop else self.read(first, last)
            end = min(last, stop)
            ranks = loops.row_ranks(whole.reshape(-1, length)).reshape(-1)[place - first : end - first]
            limits, inverses = _by_rank(length, self.density, self.epsilon)
            kept = loops.places_below(samples[place - start : end - start], ranks, limits)
            positions.append(kept + np.uint32(place - start))
            factors.append(inverses[ranks[kept]])
            place = end
        out = kept_at(np.concatenate(positions), delta)
        if not self.unbiased:
            return out
        with np.errstate(over="ignore"):  # whoever encodes refuses what is not finite
            return replace(out, values=out.values * np.concatenate(factors))

    def _rows(self, place: int, stop: int) -> tuple[int, int, int]:
        """Return start and end of the rows of one length from the one that holds `place` on, not beyond `stop`, and that length."""
        row = place // self.row
        begin = row * self.row
        if self.row <= CHUNK:
            whole = max(1, (stop - begin) // self.row) if place == begin else 1
            return begin, begin + whole * self.row, self.row
        first = begin + (place - begin) // CHUNK * CHUNK
        last = min(first + CHUNK, begin + self.row)
        return first, last, last - first
