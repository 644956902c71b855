"""What singular values say of a difference: how much of it is noise, which directions stand out, in how many it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["bulk_edge", "effective_rank", "spike_count"]


def bulk_edge(singular: Sequence[float], energy: float, rows: int, columns: int) -> float:
    """Return the largest singular value that noise with the energy of what is no spike would have.

    Of a matrix of independent elements of variance v singular values end at sqrt(v) (sqrt(rows) + sqrt(columns)) (Marchenko and Pastur).
    Spikes are taken out, the largest first, until the next one is none.

    Args:
        singular: The largest singular values, falling.
        energy: Sum of the squares of all.
        rows: Rows of the matrix.
        columns: Its columns.

    >>> bulk_edge([], 100.0, 10, 10)
    6.324555320336759
    """
    left, edge = energy, 0.0
    for number in range(len(singular) + 1):
        edge = math.sqrt(max(0.0, left) / (rows * columns)) * (math.sqrt(rows) + math.sqrt(columns))
        if number == len(singular) or singular[number] <= edge:
            break
        left -= singular[number] ** 2
    return edge


def spike_count(singular: Sequence[float], edge: float) -> int:
    """Return how many singular values are above the edge of the bulk by more than chance (a twentieth)."""
    return sum(value > 1.05 * edge for value in singular)


def effective_rank(singular: Sequence[float], energy: float, rows: int, columns: int) -> float:
    """Return |d|^4 over the sum of the fourth powers of all singular values, from the largest ones.

    What these leave of the energy is taken to be noise, whose fourth powers add up to its energy squared times 1/rows + 1/columns.

    >>> effective_rank([3.0], 9.0, 40, 50)
    1.0
    """
    if not energy > 0:
        return 0.0
    squares = [value**2 / energy for value in singular]
    left = max(0.0, 1 - sum(squares))
    fourth = sum(square**2 for square in squares) + left**2 * (1 / rows + 1 / columns)
    return 1 / fourth if fourth > 0 else 0.0
