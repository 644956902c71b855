"""What an adapter adds to a weight, rows at a time: f32, every sum over the rank in order, so that no way of reading changes a bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels import active

__all__ = ["Hadamard", "Kronecker", "LowRank", "Update"]

Matrix = NDArray[np.float32]


class Update(Protocol):
    """A difference to a weight that is a matrix, or is seen as one of its first dimension by all others."""

    def rows(self, top: int, bottom: int) -> Matrix:
        """Return rows [top, bottom), `[bottom - top, columns] f32`."""


@dataclass(frozen=True)
class LowRank:
    """`left @ right * scale`: LoRA.

    Attributes:
        left: `[rows, rank] f32`.
        right: `[rank, columns] f32`.
        scale: The factor.
    """

    left: Matrix
    right: Matrix
    scale: np.float32

    def rows(self, top: int, bottom: int) -> Matrix:
        """Return rows [top, bottom)."""
        return _scaled(active().times(np.ascontiguousarray(self.left[top:bottom]), self.right), self.scale)


@dataclass(frozen=True)
class Hadamard:
    """`(one @ two) * (three @ four) * scale`, element by element: LoHa.

    Attributes:
        first: The factors `[rows, rank]` and `[rank, columns] f32`.
        second: As many again.
        scale: The factor.
    """

    first: tuple[Matrix, Matrix]
    second: tuple[Matrix, Matrix]
    scale: np.float32

    def rows(self, top: int, bottom: int) -> Matrix:
        """Return rows [top, bottom)."""
        one, two = (active().times(np.ascontiguousarray(left[top:bottom]), right) for left, right in (self.first, self.second))
        with np.errstate(over="ignore", invalid="ignore"):
            one *= two
        return _scaled(one, self.scale)


@dataclass(frozen=True)
class Kronecker:
    """Each element of `outer` times all of `inner`, times `scale`: LoKr.

    Attributes:
        outer: `[a, b] f32`.
        inner: `[c, d] f32`, of a weight of `a * c` rows and `b * d` columns.
        scale: The factor.
    """

    outer: Matrix
    inner: Matrix
    scale: np.float32

    def rows(self, top: int, bottom: int) -> Matrix:
        """Return rows [top, bottom)."""
        places = np.arange(top, bottom)
        with np.errstate(over="ignore", invalid="ignore"):
            out = self.outer[places // len(self.inner)][:, :, None] * self.inner[places % len(self.inner)][:, None, :]
        return _scaled(out.reshape(bottom - top, -1), self.scale)


def _scaled(values: Matrix, scale: np.float32) -> Matrix:
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scale
    return values
