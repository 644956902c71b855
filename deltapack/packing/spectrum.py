"""The largest singular values and directions of a difference: what factors of low rank are made of.

A randomised method: a block of signs from a key is multiplied with `D^T D` twice, which turns it towards the first right singular
directions V; `deltapack.packing.directions` makes the left ones of them. The difference is read in blocks of rows that threads share, and
what blocks give is added in their order. All sums run in an order of their own (`deltapack.kernels`), so the result depends on neither
workers nor the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.format.digest import CHUNK
from deltapack.kernels.reference.matrices import Matrix
from deltapack.parallel import ordered_map

__all__ = ["BLOCK", "Spectrum", "eigen", "spectrum_of"]

F32 = NDArray[np.float32]
Read = Callable[[int, int], F32]
"""Returns differences [start, stop) of a tensor; they are valid until the thread reads again."""
Wide = NDArray[np.float64]
T = TypeVar("T")

_SPARE, _LANES = 7, 8
"""Directions beside those that are asked for, at least; their number is a multiple of the other, as loops over them like."""
_NOTHING = 1e-11
"""Share of the largest eigenvalue below which a direction is but rounding."""
_PIECE = 16
"""Rows that are looked at together where not all are."""
_FOUND = 2.0
"""How many times the square of its eigenvalue the mean fourth power of a direction may be, if it is no mix of many."""
BLOCK = CHUNK // 4
"""Elements that are looked at together where all are: they stay in the second-level cache."""
_SAMPLED_ROWS, _PLAIN = 16, 30
"""Rows that tell how large differences are, and the power of two up to which, or from the inverse of which, they need no scaling."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of the singular values of a difference.

    Attributes:
        rows: Its rows.
        columns: Its columns.
        energy: Sum of its squares, which is that of the squared singular values.
        sixth: Estimate of the sum of the sixth powers of all singular values.
        values: About the largest singular values, falling, `[k] f64`; fewer than asked for where there are no more.
        right: About their right directions, `[k, columns] f32`.
        shift: The power of two that brings differences near 1; 0 where none is needed.
    """

    rows: int
    columns: int
    energy: float
    sixth: float
    values: Wide
    right: F32
    shift: int

    @property
    def kappa(self) -> float:
        """Estimate of how much loss noise makes that is spread evenly: |d|^6 / (rows columns |d d^T d|^2); 0 of no difference."""
        return self.energy**3 / (self.rows * self.columns * self.sixth) if self.sixth > 0 else 0.0


def spectrum_of(
    read: Read, rows: int, columns: int, rank: int, key: int, *, turns: int = 2, share: int = 1, workers: int = 1
) -> Spectrum | None:
    """Return about the largest singular values and right directions of a difference.

    Args:
        read: The difference; it is asked for whole rows.
        rows: Its rows; at least one.
        columns: Its columns; at least one.
        rank: How many singular values; no more than there are come back.
        key: 64 bits that the signs are drawn from.
        turns: How often directions are turned, at least once: a pass each, and one for the values.
        share: Directions are turned by one of so many rows, and half as many others tell the values: those that they were turned by would
            say too much. Directions are a little less right then.
        workers: Threads; each holds a block of about a quarter of a million elements.

    Returns:
        The spectrum; `None` where a difference that is looked at is not finite, or products of differences are not.
    """
    whole = _Blocks(read, rows, columns, 0, workers)
    seen = whole.few(share) if share > 1 or rows * columns <= BLOCK else whole
    shift = _shift(seen)
    seen = replace(seen, shift=shift)
    others = replace(whole.few(2 * share, share // 2), shift=shift) if share > 1 else seen
    with np.errstate(over="ignore", invalid="ignore"):
        turned = _turned(seen, _signs(key, columns, _width(rank)), turns)
        if turned is None:
            return None
        if share > 1 and not turned.right.shape[1]:  # none of these rows has moved
            return spectrum_of(read, rows, columns, rank, key, turns=turns, workers=workers)
        gram = _products(seen, turned.right)
        if not np.isfinite(gram).all():
            return None
        squares, vectors = eigen(gram)
        right = kernels.active().times(turned.right, vectors[:, :rank].astype(np.float32))
        squares, energy = squares[:rank], turned.energy
        if share > 1:
            squares, right, energy = _told_by(others, right, rows, turned.energy, seen.rows)
        sixth = (rows / seen.rows) ** 3 * _sixth(turned.mixed, gram)
    if not (np.isfinite(squares).all() and math.isfinite(sixth)):
        return None
    back = 2.0**-shift
    energy = max(energy, math.fsum(squares.tolist()))
    return Spectrum(rows, columns, energy * back**2, sixth * back**6, np.sqrt(squares) * back, np.ascontiguousarray(right.T), shift)


def _told_by(others: _Blocks, right: F32, rows: int, energy: float, seen: int) -> tuple[Wide, F32, float]:
    """Return squared singular values, falling, and their right directions in that order, and the energy: by rows of no part in directions.

    Args:
        others: The rows.
        right: Right directions, `[columns, k]`.
        rows: How many rows there are in all.
        energy: The energy of those rows that were seen before.
        seen: How many these were.
    """
    found = math.fsum(others.each(lambda block: kernels.active().sum_of_squares(block.reshape(-1))))
    squares = np.diag(_products(others, right)) * (rows / others.rows)
    order = np.argsort(-squares, kind="stable")
    return squares[order], right[:, order], (energy + found) * rows / (seen + others.rows)


def _width(rank: int) -> int:
    return -(-(rank + _SPARE) // _LANES) * _LANES


def _signs(key: int, columns: int, width: int) -> F32:
    """Return signs at random, `[columns, width] f32`."""
    samples = kernels.active().element_samples(key, 0, columns * width)
    return np.where(samples >> 31, np.float32(-1), np.float32(1)).reshape(columns, width)


def _shift(blocks: _Blocks) -> int:
    """Return the power of two that brings a few differences near 1, 0 where sixth powers of them are numbers as they are."""
    rows, columns = blocks.rows, blocks.columns
    parts = (blocks.read(row * columns, (row + 1) * columns) for row in range(0, rows, -(-rows // _SAMPLED_ROWS)))
    largest = max(float(np.abs(part[np.isfinite(part)]).max(initial=0)) for part in parts)
    power = math.frexp(largest)[1] if largest > 0 else 0
    return 0 if abs(power) <= _PLAIN else -power


@dataclass(frozen=True)
class _Blocks:
    """A difference in blocks of rows, times a power of two."""

    read: Read
    rows: int
    columns: int
    shift: int
    workers: int

    def few(self, share: int, after: int = 0) -> _Blocks:
        """Return one of so many rows, in memory; from the one on that is this number of pieces after the first."""
        size = _PIECE if share > 1 else self.rows
        pieces = [(first, min(first + size, self.rows)) for first in range(after * size, self.rows, size * share)]
        held = np.empty(sum(last - first for first, last in pieces) * self.columns, np.float32)
        done = 0
        for first, last in pieces:
            end = done + (last - first) * self.columns
            held[done:end] = self.read(first * self.columns, last * self.columns)
            done = end
        return _Blocks(lambda start, stop: held[start:stop], done // self.columns, self.columns, self.shift, 1)

    def each(self, function: Callable[[F32], T]) -> Iterator[T]:
        """Yield what a function makes of each block `[n, columns] f32`, in order."""
        step, scale = max(1, BLOCK // self.columns), np.float32(2.0**self.shift)

        def work(first: int) -> T:
            block = self.read(first * self.columns, min(first + step, self.rows) * self.columns)
            return function((block if self.shift == 0 else block * scale).reshape(-1, self.columns))

        with closing(ordered_map(work, range(0, self.rows, step), self.workers)) as results:
            yield from results


class _Turned(NamedTuple):
    """Right directions, and what the turns told beside.

    Attributes:
        right: Orthonormal, `[columns, k] f32`.
        energy: Sum of squares of the difference D.
        mixed: `[k, width] f64`, what the signs became in the first turn, D^T D times them, along these directions.
    """

    right: F32
    energy: float
    mixed: Wide


def _turned(blocks: _Blocks, directions: F32, turns: int) -> _Turned | None:
    """Turn directions towards the first right ones; `None` where what comes of it is not finite."""
    loops, mixed = kernels.active(), np.zeros((0, 0))
    for turn in range(turns):
        total, energy = np.zeros((blocks.columns, directions.shape[1])), 0.0
        for sums, squares in blocks.each(lambda block, now=directions: _turn(block, now)):  # type: ignore[misc]
            total += sums
            energy += squares
        if not (math.isfinite(energy) and np.isfinite(total).all()):
            return None
        of_signs = total if turn == 0 else loops.times(directions.astype(np.float64), mixed)
        directions = _orthonormal(total)
        mixed = loops.transposed_times(directions.astype(np.float64), of_signs)
    return _Turned(directions, energy, mixed)


def _turn(block: F32, directions: F32) -> tuple[Matrix, float]:
    """Return what a block adds to the turned directions, and to the energy."""
    loops = kernels.active()
    return loops.transposed_times(block, loops.times(block, directions)), loops.sum_of_squares(block.reshape(-1))


def _products(blocks: _Blocks, right: F32) -> Wide:
    """Return the scalar products of what rows make of right directions, `[k, k]`."""

    def of_block(block: F32) -> Wide:
        wide = kernels.active().times(block, right).astype(np.float64)
        return kernels.active().transposed_times(wide, wide)

    return sum(blocks.each(of_block), np.zeros((right.shape[1],) * 2))


def _sixth(mixed: Wide, gram: Wide) -> float:
    """Return about the sum of the sixth powers of all singular values.

    It is the mean over signs z of |D M z|^2, M = D^T D, split by the directions that D^T D says are its own in the span of M z. The part of
    one that is found already has a known mean, which takes the place of what these few signs make of it.
    """
    squares, vectors = eigen(gram)
    parts = kernels.active().transposed_times(vectors, mixed)
    fourth = np.add.reduce(np.square(parts).T, axis=0) / max(1, mixed.shape[1])
    found = fourth < _FOUND * np.square(squares)
    return math.fsum((squares * np.where(found, np.square(squares), fourth)).tolist())


def eigen(matrix: Wide) -> tuple[Wide, Wide]:
    """Return the eigenvalues of a symmetric matrix that are more than rounding, falling, and their vectors in columns."""
    work, vectors = matrix.copy(), np.eye(len(matrix))
    kernels.active().symmetric_eigen(work, vectors)
    values = np.diag(work)
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > _NOTHING * max(0.0, float(values.max(initial=0)))]
    return values[order], vectors[:, order]


def _orthonormal(directions: Wide) -> F32:
    """Return an orthonormal basis of columns, `[n, k] f32`, without what is but rounding."""
    loops = kernels.active()
    values, vectors = eigen(loops.transposed_times(directions, directions))
    return loops.times(directions, vectors / np.sqrt(values)).astype(np.float32)
