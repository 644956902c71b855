"""What an exact chunk is made of, checked and taken apart but not decoded: for those who decode elsewhere (spec/codecs/exact.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.exact import FORMS, read_changed
from deltapack.codecs.exact_bytes import Cursor, need
from deltapack.codecs.exact_dense import Dense, read_dense, read_shared
from deltapack.codecs.exact_planes import Part, read_planes
from deltapack.codecs.exact_tables import NO_TABLES, SharedTables
from deltapack.dtypes import DType
from deltapack.kernels.exact_numbers import Numbers, numbers_of
from deltapack.kernels.layout import Positions

__all__ = ["Parts", "firsts_of", "read_parts"]


@dataclass(frozen=True)
class Parts:
    """A chunk, taken apart. Without `dense` and `planes` its numbers are those of the base.

    Attributes:
        length: Numbers of the chunk.
        changed: Which of them are given anew, `[m]`, increasing; none: all.
        dense: The differences from the base of those that are given, or none.
        planes: The parts of each plane of those that are given, the least significant plane first; none where they are no planes.
        moves: Whether planes are what is added to the base.
    """

    length: int
    changed: Positions | None = None
    dense: Dense | None = None
    planes: tuple[tuple[Part, ...], ...] = ()
    moves: bool = False

    @property
    def given(self) -> int:
        """How many numbers are given anew."""
        if self.changed is not None:
            return len(self.changed)
        return self.length if self.planes or self.dense is not None else 0


def read_parts(data: bytes, dtype: DType, length: int, has_base: bool, tables: SharedTables = NO_TABLES) -> Parts:
    """Take a chunk apart.

    Args:
        data: Of `deltapack.codecs.exact.encode_exact_chunk`.
        dtype: Type of its elements.
        length: Number of its elements.
        has_base: Whether there is a base.
        tables: That the chunk may refer to.

    Raises:
        FormatError: The bytes are damaged (rules R8 to R10). Whether symbols and raw bits end where they should only decoding tells.
    """
    numbers = numbers_of(dtype)
    cursor, count = Cursor(data), length * numbers.parts
    parts = _read(cursor, count, _Given(numbers, tables, has_base), FORMS) if count else Parts(0)
    cursor.end("the chunk")
    return parts


class _Given(NamedTuple):
    """What a chunk is read with."""

    numbers: Numbers
    tables: SharedTables
    has_base: bool


def _read(cursor: Cursor, length: int, given: _Given, forms: tuple[str, ...]) -> Parts:
    number = cursor.byte("the form")
    need(number < len(FORMS) and FORMS[number] in forms, "no such form", expected=forms, found=number)
    form = FORMS[number]
    if form == "planes":
        moves, planes = read_planes(cursor, length, given.numbers, given.has_base)
        return Parts(length, planes=tuple(map(tuple, planes)), moves=moves)
    need(given.has_base, "a form that needs a base", found=form)
    if form == "equal":
        return Parts(length)
    if form == "dense":
        return Parts(length, dense=read_dense(cursor, length, given.numbers))
    if form == "shared":
        return Parts(length, dense=read_shared(cursor, length, given.numbers, given.tables))
    changed = read_changed(cursor, length)
    inner = _read(cursor, len(changed), given, ("planes", "dense", "shared"))
    return Parts(length, changed, inner.dense, inner.planes, inner.moves)


def firsts_of(frequencies: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the first slot of each symbol in each context, `[contexts, 256]`, from frequencies of that shape.

    The symbol of a slot is the last one whose first slot is not above it, and its frequency the distance to the next.
    """
    return (np.cumsum(frequencies, axis=1) - frequencies).astype(np.uint16)
