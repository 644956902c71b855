"""What every sparsifier is given, the difference of a tensor, and what it gives, the kept elements of a chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.reference.positions import tile_counts

__all__ = ["Kept", "Sparsifier", "TensorDelta", "kept_at"]


@dataclass(frozen=True)
class TensorDelta:
    """The difference of a tensor, to be read piece by piece, and what is asked of the sparsifier.

    Attributes:
        read: Returns differences [start, stop) in row-major order, `f32`; they are valid until the thread reads again.
        numel: Number of elements.
        row: Elements of a row, the last dimension; all elements, if there is but one.
        density: Share of the elements to keep, in (0, 1).
        key: 64 bits for random numbers; differ between tensors and fine-tunes.
        parameters: The sparsifier's own, by name.
        unbiased: Whether kept values are divided by the probability to be kept; false where the user named a factor.
        workers: Threads for passes over the tensor.
    """

    read: Callable[[int, int], NDArray[np.float32]]
    numel: int
    row: int
    density: float
    key: int
    parameters: Mapping[str, float]
    unbiased: bool
    workers: int


@dataclass(frozen=True)
class Kept:
    """The kept elements of a chunk.

    Attributes:
        positions: `[nnz] uint32`, increasing.
        counts: `[tiles] int64` kept elements of each tile.
        values: `[nnz] f32` differences, not yet multiplied with the term's factor.
    """

    positions: NDArray[np.uint32]
    counts: NDArray[np.int64]
    values: NDArray[np.float32]


class Sparsifier(Protocol):
    """Chooses what is kept of one tensor by its differences."""

    def select(self, chunk: int, delta: NDArray[np.float32]) -> Kept:
        """Return what is kept of chunk number `chunk`, whose differences are `delta`, `[n] f32`."""


def kept_at(positions: NDArray[np.uint32], values: NDArray[np.float32]) -> Kept:
    """Return the elements of a chunk at increasing positions; `values` are all of the chunk, `[n]`."""
    return Kept(positions, tile_counts(positions, len(values)), values[positions])
