"""Scales of codes that have none by groups: one for all, times one of the row, times one of the column (spec/codecs/values.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import FormatError
from deltapack.format.frames import unpack_stream
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader
from deltapack.kernels.layout import Bytes, Lines, Values

__all__ = ["DROPPED", "LINE_STEPS", "Scaling", "lines_of_tensor", "lines_of_term", "nearest_lines"]

DROPPED = 0
"""The byte of a row of which nothing is kept."""
LINE_STEPS = 8
"""Of an octave."""
_LOWEST = -16
_MANTISSAS = (0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7)
"""Of the steps of an octave."""
_NO_LINES = np.zeros(0, np.float32)


def _nothing() -> Bytes:
    return np.zeros(0, np.uint8)


@dataclass(frozen=True, eq=False)
class Scaling:
    """How a writer scales the codes of a term.

    Attributes:
        kind: One of `deltapack.format.codecs.SCALES`.
        scale: What all codes are multiplied with; becomes an f32.
        rows: A byte for each row, `[rows] uint8`, `DROPPED` where nothing of it is kept; none for `"tensor"`.
        columns: A byte for each column, `[width] uint8`, from 1 on; only for `"outer"`.
        width: Number of columns, where there are rows.
        threshold: In units of an element's scale. `ternary` codes what is at least so large as 1 or -1; it is the step of `uniform`.
            Readers do not need it.
    """

    kind: Literal["tensor", "rows", "outer"]
    scale: float
    rows: Bytes = field(default_factory=_nothing)
    columns: Bytes = field(default_factory=_nothing)
    width: int = 1
    threshold: float = 1.0

    def __post_init__(self) -> None:
        shape = {"tensor": len(self.rows) == len(self.columns) == 0, "rows": len(self.columns) == 0}
        fits = shape.get(self.kind, len(self.columns) == self.width) and (self.kind == "tensor" or len(self.rows) > 0)
        if not (fits and np.isfinite(np.float32(self.scale)) and self.threshold > 0 and (self.columns != DROPPED).all()):
            raise ValueError(f"no such scaling: {self.kind}, scale {self.scale}, threshold {self.threshold}")

    @cached_property
    def lines(self) -> Lines:
        """The scales as numbers."""
        return Lines(float(np.float32(self.scale)), _numbers()[self.rows], _numbers()[self.columns], self.width)

    @cached_property
    def drops(self) -> bool:
        """Whether any row is dropped."""
        return bool((self.rows == DROPPED).any())

    @property
    def raw(self) -> bytes:
        """The content of the blob `lines`; empty for `"tensor"`."""
        return self.rows.tobytes() + self.columns.tobytes()


def nearest_lines(scales: NDArray[np.floating]) -> Bytes:
    """Return the byte of the scale nearest to each, by ratio, `[n] uint8`, from 1 on; what is out of reach becomes the nearest in reach.

    >>> nearest_lines(np.array([1.0, 2.0, 0.0]))
    array([128, 136,   1], dtype=uint8)
    """
    with np.errstate(divide="ignore"):
        places = np.rint((np.log2(scales.astype(np.float64)) - _LOWEST) * LINE_STEPS)
    lines: Bytes = np.clip(places, 1, 255).astype(np.uint8)
    return lines


def lines_of_tensor(term: Term) -> Lines | None:
    """Return the scale of all codes of a term whose rows have none; none where it has no such scale either."""
    return Lines(term.scale, _NO_LINES, _NO_LINES, 1) if term.scales else None


def lines_of_term(reader: PackReader, entry: Entry, term: Term) -> Lines | None:
    """Return the scales of a term, or none where groups of its codes have scales, or its codes none.

    Raises:
        FormatError: Rule R8, R9 or R10 is broken.
    """
    if term.lines is None:
        return lines_of_tensor(term)
    width = entry.shape[-1]
    rows = entry.common // width
    try:
        raw = _raw_lines(reader, term, rows + (width if term.scales == "outer" else 0))
    except FormatError as error:
        error.path, error.tensor = reader.path, entry.name
        raise
    if not raw[rows:].all():
        raise FormatError("the scale of a column is 0", path=reader.path, tensor=entry.name, rule="R9", expected="1 to 255", found=0)
    return Lines(term.scale, _numbers()[raw[:rows]], _numbers()[raw[rows:]], width)


def _raw_lines(reader: PackReader, term: Term, length: int) -> Bytes:
    assert term.lines is not None
    if term.lines.length > length:
        raise FormatError(
            "scales of rows are stored larger than they are", rule="R8", expected=f"at most {length}", found=term.lines.length
        )
    return np.frombuffer(unpack_stream(reader.plain_blob(term.lines), length), np.uint8)


@lru_cache
def _numbers() -> Values:
    """Return what each byte stands for, `[256] f32`; 0 for `DROPPED`."""
    mantissas = np.array(_MANTISSAS, np.uint32).view(np.float32)
    bytes_ = np.arange(256)
    numbers = np.ldexp(mantissas[bytes_ % LINE_STEPS], bytes_ // LINE_STEPS + _LOWEST)
    return np.where(bytes_ == DROPPED, np.float32(0), numbers).astype(np.float32)
