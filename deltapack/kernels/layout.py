"""What the loops of every backend, and those who call them, agree on: sizes, and how arrays of kept elements look."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.format.digest import TILE

__all__ = [
    "BIT",
    "ESCAPE",
    "EXACT_BLOCK",
    "GROUP",
    "RANS_LOW",
    "SPARE",
    "STEPS",
    "TILE",
    "TRITS",
    "Bits",
    "Bytes",
    "Counts",
    "Elements",
    "Lines",
    "Positions",
    "Sparse",
    "Values",
]

ESCAPE = 255
"""The gap that says: skip so many, nothing is kept here, go on."""
GROUP = 128
"""Kept values that share a scale."""
TRITS = 5
"""Trits in a byte."""
SPARE = 256
"""How many elements behind the last position or value a backend may overwrite."""
EXACT_BLOCK = 128
"""Numbers of the exact codec that share a class."""
STEPS = 64
"""Steps of a staircase of the exact codec."""
RANS_LOW = 1 << 15
"""The least state of its range coder; encoding begins with it."""
BIT = 1 << 16
"""A bit, in the units in which it counts costs."""

Elements = NDArray[np.generic]
"""Elements of a tensor, in the storage type of their dtype."""
Bits = NDArray[np.unsignedinteger[Any]]
"""Numbers of the exact codec as their bits, `[n]`."""
Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]
"""Kept elements, or elements, of each tile of a chunk, `[tiles]`."""
Positions = NDArray[np.uint32]
"""Kept positions in a chunk, strictly increasing, `[nnz]`."""
Values = NDArray[np.float32]
"""Differences at kept positions, `[nnz]`."""


class Sparse(NamedTuple):
    """What is kept of a chunk; or, where a loop writes its result, arrays of the chunk's length and `SPARE` more."""

    positions: Positions
    values: Values


class Lines(NamedTuple):
    """Scales of codes that have none by groups.

    Attributes:
        scale: What all are multiplied with.
        rows: The scale of each row, `[rows] f32`, 0 where it is dropped; none where rows have no scale of their own.
        columns: The scale of each column, `[width] f32`, or none.
        width: Number of columns.
    """

    scale: float
    rows: Values
    columns: Values
    width: int
