"""Left singular directions of a difference, for right ones that are known about: both are what factors of low rank are made of.

They follow from D V, which takes a pass over all of it, and so is done for as many as are wanted in the end. Blocks of rows are put
together in their order and every sum runs in an order of its own (`deltapack.kernels`): the result depends on neither workers nor the
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.packing.spectrum import BLOCK, Spectrum, eigen
from deltapack.parallel import ordered_map

__all__ = ["Directions", "directions_of"]

F32 = NDArray[np.float32]
Wide = NDArray[np.float64]
Multiply = Callable[[int, int, F32, np.float32], F32]
"""Returns whole rows of differences, [start, stop), times a number and the rows of a matrix `[k, columns]`: `[n, k] f32`."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Singular values and directions of a difference within the span of some right directions.

    Attributes:
        values: Singular values, falling, `[k] f64`.
        left: Their left directions, `[k, rows] f32`.
        right: Their right directions, `[k, columns] f32`.
    """

    values: Wide
    left: F32
    right: F32

    def first(self, rank: int) -> Directions:
        """Return the first of them, at most so many."""
        return Directions(self.values[:rank], self.left[:rank], self.right[:rank])


def directions_of(multiply: Multiply, spectrum: Spectrum, rank: int, workers: int = 1) -> Directions | None:
    """Return the first singular values and directions; reads all of the difference once.

    Args:
        multiply: Multiplies the difference.
        spectrum: What is known of it.
        rank: How many; no more than the spectrum has come back.
        workers: Threads, as for the spectrum.

    Returns:
        The directions; `None` where a difference is not finite, or products of differences are not.
    """
    step, right = max(1, BLOCK // spectrum.columns), np.ascontiguousarray(spectrum.right[:rank])
    scale = np.float32(2.0**spectrum.shift)

    def work(first: int) -> F32:
        return multiply(first * spectrum.columns, min(first + step, spectrum.rows) * spectrum.columns, right, scale)

    with np.errstate(over="ignore", invalid="ignore"):
        with closing(ordered_map(work, range(0, spectrum.rows, step), workers)) as results:
            left = np.concatenate(list(results))
        wide = left.astype(np.float64)
        products = kernels.active().transposed_times(wide, wide)
        return _turned_to(left, right, products, spectrum.shift) if np.isfinite(products).all() else None


def _turned_to(left: F32, right: F32, gram: Wide, shift: int) -> Directions:
    """Return singular values and directions from what D times a power of two makes of right directions, and the scalar products of that."""
    squares, vectors = eigen(gram)
    values, loops = np.sqrt(squares), kernels.active()
    first, second = loops.times(left, (vectors / values).astype(np.float32)), loops.times(right.T, vectors.astype(np.float32))
    return Directions(values * 2.0**-shift, np.ascontiguousarray(first.T), np.ascontiguousarray(second.T))
