"""What a chunk is of a product of two factors: what a backend makes its values of."""

from __future__ import annotations

from typing import NamedTuple

from deltapack.kernels.layout import Values

__all__ = ["Product"]


class Product(NamedTuple):
    """The factors of consecutive elements, row by row, of a matrix of low rank.

    Attributes:
        left: `[rank, rows] f32` columns of the left factor, in the rows that the elements lie in.
        right: `[rank, columns] f32` columns of the right factor, of all columns of the matrix.
        start: The column of the first element, which lies in the first of the rows.
        length: Number of elements; not more than there are up to the end of the last row.
    """

    left: Values
    right: Values
    start: int
    length: int
