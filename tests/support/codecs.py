"""Codecs as the tables list them, so that a new row is tested as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable

from deltapack.codecs.chunk import TermCodec
from deltapack.codecs.scaling import Scaling
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS, ScaleSearch

SCALED = tuple(row.name for row in VALUE_CODECS.values() if row.grouped)
"""Codecs whose groups of codes have scales."""
FLOAT_CODES = {row.name: row.dtype for row in VALUE_CODECS.values() if row.dtype is not None}
ONE_SCALE = Scaling("tensor", 0.01, threshold=0.7)
SEARCHES: dict[str, ScaleSearch] = {row.name: row.search for row in VALUE_CODECS.values() if row.search is not None}
"""Codecs whose codes are integers."""


def is_sign(codec: str) -> bool:
    return VALUE_CODECS[codec].form == "sign"


def code_range(codec: str) -> tuple[int, int]:
    """The least and the largest code that a stream may hold; of signs there are only these two."""
    half = 1 << VALUE_CODECS[codec].bits - 1
    return (-1, 1) if is_sign(codec) else (-half, half - 1)


def written_range(codec: str) -> tuple[int, int]:
    """The least and the largest code that the encoder writes."""
    return (-1, 1) if is_sign(codec) else (-SEARCHES[codec].top, SEARCHES[codec].top - 1)


def codec_of(index: str, values: str, shift: int = 0) -> TermCodec:
    """A codec; one whose codes cannot have scales by groups gets one scale for all, which suits differences of about a hundredth."""
    return TermCodec(index, values, shift, None if VALUE_CODECS[values].grouped or not VALUE_CODECS[values].scaled else ONE_SCALE)


def completed(chosen: Iterable[TermCodec]) -> tuple[TermCodec, ...]:
    """What was chosen, and after it one of each codec that was not."""
    listed = tuple(chosen)
    values, index = {codec.values for codec in listed}, {codec.index for codec in listed}
    return (
        *listed,
        *(codec_of("bitmap", name) for name in VALUE_CODECS if name not in values),
        *(codec_of(name, "int4") for name in INDEX_CODECS if name not in index),
    )
