"""The two factors of a matrix of differences that lose least: its first singular directions, found at random and deterministically.

Sums run in an order of their own (`deltapack.packing.spectrum`), so the factors depend on neither workers nor the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.dtypes import DType
from deltapack.kernels import rounding
from deltapack.packing.directions import Directions, directions_of
from deltapack.packing.spectrum import BLOCK, Read, Spectrum, spectrum_of
from deltapack.parallel import ordered_map

__all__ = ["LowRank", "Target", "factorize"]

F32 = NDArray[np.float32]

_KEY = 0x6465_6C74_6170_6163
_TURNS = 4
"""Passes that turn directions: the error is then well below 1 % more than the least one."""
_FIRST = 16
"""The rank that is tried first where a share of the energy is wanted; each next one is twice as large."""
_ROUNDS, _ROUNDING = 4, 1e-13
"""How often directions are looked for in what others leave, and the share of the sum of squares that is but rounding."""


@dataclass(frozen=True)
class Target:
    """What is wanted of factors.

    Attributes:
        rank: The rank, or the largest one where a share is given.
        energy: The share of the sum of squares that is enough, in (0, 1]; none for the rank alone.
        dtype: Type of the factors.
    """

    rank: int
    energy: float | None
    dtype: DType


@dataclass(frozen=True, eq=False)
class LowRank:
    """Factors of a matrix: `left @ right` is near it.

    Attributes:
        left: `[rows, rank] f32`, values of the wanted type.
        right: `[rank, columns] f32`, likewise.
        rank: Their rank.
        total: Sum of squares of the matrix.
        lost: Sum of squares of what the factors, as they are stored, leave.
    """

    left: F32
    right: F32
    rank: int
    total: float
    lost: float

    def without_factors(self) -> LowRank:
        """Return what is known of them."""
        none = np.zeros((0, 0), np.float32)
        return replace(self, left=none, right=none)

    @property
    def error(self) -> float:
        """Norm of what is left, as a share of the matrix's."""
        return math.sqrt(self.lost / self.total) if self.total > 0 else 0.0


def factorize(read: Read, rows: int, columns: int, target: Target, workers: int) -> LowRank | None:
    """Return the factors of a matrix; of rank 0 where it is zero, `None` where it is not finite.

    Args:
        read: The matrix; it is asked for whole rows, several times.
        rows: Its rows, at least one.
        columns: Its columns, at least one.
        target: What is wanted.
        workers: Threads.
    """
    most = min(target.rank, rows, columns)
    matrix = _Matrix(read, rows, columns, workers)
    rank = most if target.energy is None else _likely(matrix, most, target.energy)
    while True:
        found = _first(matrix, rank)
        if found is None:
            return None
        enough = _enough(found.directions, found.energy, target.energy)
        if enough is not None or rank == most:
            directions = found.directions if enough is None else found.directions.first(enough)
            return _measured(matrix, directions, found.energy, target.dtype)
        rank = min(most, 2 * rank)


def _likely(matrix: _Matrix, most: int, share: float) -> int:
    """Return a rank that holds a share of the energy, though it may be larger than need be; or the largest that is allowed."""
    rank = min(most, _FIRST)
    while rank < most:
        spectrum = spectrum_of(matrix.read, matrix.rows, matrix.columns, rank, _KEY, turns=1, workers=matrix.workers)
        if spectrum is None or math.fsum(np.square(spectrum.values).tolist()) >= share * spectrum.energy:
            break
        rank = min(most, 2 * rank)
    return rank


@dataclass(frozen=True)
class _Matrix:
    """A matrix that is read in blocks of rows by threads."""

    read: Read
    rows: int
    columns: int
    workers: int

    def without(self, directions: Directions) -> _Matrix:
        """Return the rest of it beside some directions."""
        left, right = np.ascontiguousarray((directions.left * directions.values[:, None]).T.astype(np.float32)), directions.right

        def read(start: int, stop: int) -> F32:
            made = kernels.active().times(np.ascontiguousarray(left[start // self.columns : stop // self.columns]), right)
            rest: F32 = self.read(start, stop) - made.reshape(-1)
            return rest

        return replace(self, read=read)


class _Found(NamedTuple):
    """Directions, and the sum of squares of the matrix."""

    directions: Directions
    energy: float


def _first(matrix: _Matrix, rank: int) -> _Found | None:
    """Return the first directions; those that are less than a thousandth of the largest are looked for in what the others leave."""
    parts = list[Directions]()
    energy, missing, rest = 0.0, rank, matrix
    for turn in range(_ROUNDS):
        spectrum = spectrum_of(rest.read, matrix.rows, matrix.columns, missing, _KEY, turns=_TURNS, workers=matrix.workers)
        if spectrum is None:
            return None
        energy = energy if turn else spectrum.energy
        if not len(spectrum.values) or spectrum.energy <= _ROUNDING * energy:
            break
        found = _directions(rest, spectrum, missing)
        if found is None:
            return None
        parts.append(found)
        missing -= len(found.values)
        if missing <= 0 or not len(found.values):
            break
        rest = rest.without(found)
    none = Directions(np.zeros(0), np.zeros((0, matrix.rows), np.float32), np.zeros((0, matrix.columns), np.float32))
    every = [none, *parts]
    values, left, right = ([part.values for part in every], [part.left for part in every], [part.right for part in every])
    return _Found(Directions(np.concatenate(values), np.concatenate(left), np.concatenate(right)), energy)


def _directions(matrix: _Matrix, spectrum: Spectrum, rank: int) -> Directions | None:
    def multiply(start: int, stop: int, right: F32, scale: np.float32) -> F32:
        block = matrix.read(start, stop).reshape(-1, spectrum.columns)
        return kernels.active().times(block * scale, np.ascontiguousarray(right.T))

    return directions_of(multiply, spectrum, rank, matrix.workers)


def _enough(directions: Directions, energy: float, share: float | None) -> int | None:
    """Return how many directions hold a share of the energy; none where they do not, or nobody asks."""
    if share is None or energy <= 0:
        return None if share is None else 0
    held = np.add.accumulate(np.square(directions.values))
    # All of a matrix is there when but rounding is missing.
    wanted = np.flatnonzero(held >= energy * min(share, 1 - 1e-9))
    return int(wanted[0]) + 1 if len(wanted) else None


def _measured(matrix: _Matrix, directions: Directions, energy: float, dtype: DType) -> LowRank:
    """Return factors, each with half of a singular value's root, and what they leave of the matrix."""
    roots = np.sqrt(directions.values)[:, None]
    left, right = (_rounded((side * roots).astype(np.float32), dtype) for side in (directions.left, directions.right))
    left = np.ascontiguousarray(left.T)
    rows, columns = len(left), right.shape[1]
    step = max(1, BLOCK // columns)

    def rest(top: int) -> float:
        bottom = min(top + step, rows)
        block = matrix.read(top * columns, bottom * columns)
        made = kernels.active().times(np.ascontiguousarray(left[top:bottom]), right).reshape(-1)
        return kernels.active().sum_of_squares(block - made)

    if not len(right):
        return LowRank(left, right, 0, energy, energy)
    with closing(ordered_map(rest, range(0, rows, step), matrix.workers)) as results:
        lost = math.fsum(_finite(results))
    return LowRank(left, right, len(right), energy, lost)


def _finite(values: Iterator[float]) -> Iterator[float]:
    """Yield sums; those that f32 cannot hold in a product of factors count as all that there is."""
    for value in values:
        yield value if math.isfinite(value) else math.inf


def _rounded(values: F32, dtype: DType) -> F32:
    """Return values of a type as f32."""
    return rounding.to_f32(rounding.from_f32(values.reshape(-1), dtype), dtype).reshape(values.shape)
