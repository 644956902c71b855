"""From the fields of a `base` to a `BaseRef`, also of an arranged one. Implements the parts of rules R4 to R6 that concern them."""

from __future__ import annotations

import math
from typing import Any

from deltapack.dtypes import DType
from deltapack.errors import FormatError, LimitError
from deltapack.format.arrangement import Arrangement, BaseRef, Piece
from deltapack.format.fields import check_bytes, check_keys, dtype_of, hexadecimal, shape_of, tensor_name, typed
from deltapack.limits import Limits

__all__ = ["parse_base"]


def parse_base(row: Any, name: str, dtype: DType | None, shape: tuple[int, ...] | None, limits: Limits) -> BaseRef:
    """Return `row["base"]` of the entry of this name, type and shape (`None`: of a removed tensor, whose `base` says them).

    Raises:
        FormatError: Rule R4 or R6 is broken.
        LimitError: More dimensions, elements or pieces than `limits` allow.
        UnsupportedError: The type is unknown (rule R5).
    """
    base = typed(row, "base", dict)
    removed = {"dtype", "shape"} if dtype is None else set()
    check_keys(base, "base", required={"digest"} | removed, optional={"name", "dtype", "shape", "grid", "pieces"})
    if removed and "name" in base:
        raise FormatError("a removed tensor has a second name", rule="R6", found=base["name"])
    found = BaseRef(
        name=tensor_name(base, limits) if "name" in base else name,
        dtype=dtype_of(base) if "dtype" in base else dtype or dtype_of(base),
        shape=shape_of(base, limits) if "shape" in base else shape or (),
        digest=hexadecimal(base, "digest", 32),
        arranged=_arrangement(base, shape, limits),
    )
    check_bytes(found.dtype, found.shape, limits)
    if found.arranged is not None and found.dtype.raw_bits:
        raise FormatError("an arranged base has a raw type", rule="R6", found=found.dtype)
    repeats = ("name" in base and found.name == name) or ("dtype" in base and found.dtype == dtype)
    if repeats or (shape is not None and "shape" in base and found.shape == shape):
        raise FormatError("the base repeats what the entry says", rule="R6")
    return found


def _arrangement(base: Any, shape: tuple[int, ...] | None, limits: Limits) -> Arrangement | None:
    """Return the arrangement that the `base` of an entry of this shape (`None`: of a removed tensor) states, if it states one.

    Raises:
        FormatError: Rule R4 or R6 is broken.
        LimitError: It has more pieces than `limits` allow.
    """
    if "grid" not in base and "pieces" not in base:
        return None
    check_keys(base, "an arranged base", required={"digest", "grid", "pieces"}, optional={"name", "dtype", "shape"})
    if shape is None or "name" in base or "shape" in base:
        raise FormatError("an arranged base is removed, or has a name or shape of its own", rule="R6")
    rows = typed(base, "pieces", list)
    if len(rows) > limits.pieces:
        raise LimitError("too many pieces of a base tensor", rule="R6", expected=f"at most {limits.pieces}", found=len(rows))
    grid = tuple(_ints({"grid": extents}, "grid") for extents in typed(base, "grid", list))
    if not grid or any(extent < 1 for extents in grid for extent in extents) or tuple(map(sum, grid)) != shape:
        raise FormatError("the grid does not cover the tensor", rule="R6", expected=list(shape), found=[sum(extents) for extents in grid])
    arrangement = Arrangement(grid, tuple(_piece(row, limits) for row in rows))
    count = math.prod(map(len, grid))
    if len(rows) != count:
        raise FormatError("the grid has another number of cells than there are pieces", rule="R6", expected=count, found=len(rows))
    for piece, cell in arrangement.cells:
        _check_rank(piece, cell, limits)
    return arrangement


def _piece(row: Any, limits: Limits) -> Piece:
    check_keys(row, "a piece", required={"name", "from"}, optional={"transposed"})
    if "transposed" in row and row["transposed"] is not True:
        raise FormatError("'transposed' is not true", rule="R4", found=row["transposed"])
    return Piece(tensor_name(row, limits), _ints(row, "from"), "transposed" in row)


def _check_rank(piece: Piece, cell: tuple[int, ...], limits: Limits) -> None:
    """Check that a piece can have the dimensions of its cell; whether its tensor has such a box, the base will tell."""
    rank, transposed = len(piece.start), piece.transposed
    dropped = cell[: max(0, len(cell) - rank)]
    if not 1 <= rank <= limits.ndim or min(piece.start) < 0:
        raise FormatError("a piece starts nowhere", rule="R6", found=list(piece.start))
    if set(dropped) - {1} or (transposed and min(rank, len(cell)) < 2):
        raise FormatError("a piece has other dimensions than its cell", rule="R6", expected=list(cell), found=f"{rank} dimensions")


def _ints(row: Any, key: str) -> tuple[int, ...]:
    values = typed(row, key, list)
    if not all(type(value) is int for value in values):
        raise FormatError(f"{key!r} is not a list of integers", rule="R4", found=values)
    return tuple(values)
