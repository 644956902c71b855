"""What every sparsifier gives: the kept elements of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.reference.positions import tile_counts

__all__ = ["Kept", "Sparsifier", "kept_at"]


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
