"""The codecs as data, one row each: what the index may name, and what reading and writing a term needs to know of it.

Everything that lists codecs takes its list from here: parsing, recipes, the command line, the engines of every device, tests. What the
streams mean is in `spec/codecs/` and `deltapack.codecs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from deltapack.dtypes import BY_NAME, DType

__all__ = [
    "FACTORS",
    "FIELDS",
    "FILE_BASE",
    "FOLDERS",
    "INDEX_CODECS",
    "MOST_LINES",
    "SCALES",
    "VALUE_CODECS",
    "IndexCodec",
    "Parameter",
    "ScaleSearch",
    "ValueCodec",
    "known_features",
]

FILE_BASE, FOLDERS = "files.base", "folders"
"""Features beside those of codecs: side files that refer to the base's, and weights in sub-folders (spec/03-index.md 3.7 and 3.9)."""

FIELDS = (1, 2, 4, 8)
"""Bits that a code with a scale may take: those that fill a byte."""


@dataclass(frozen=True)
class ScaleSearch:
    """How a writer chooses the scales of a low-bit codec; readers do not need it.

    Attributes:
        top: Codes are in [-top, top - 1].
        mantissa_bits: Scales have so many bits of mantissa, which makes them small after zstd.
        candidates: How many widths of a code to try, downwards from the one that reaches the largest magnitude.
    """

    top: int
    mantissa_bits: int
    candidates: int

    def __post_init__(self) -> None:
        if not (2 <= self.top <= 128 and 1 <= self.mantissa_bits <= 7 and self.candidates >= 1):
            raise ValueError(f"no such search: {self}")


Coding = Literal["planes", "fields", "trits", "levels", "factors"]


@dataclass(frozen=True)
class ValueCodec:
    """One way to store the values of kept elements: as floats, or as signs or integers with scales.

    Attributes:
        name: Its name in the index.
        bits: Bits of a stored code, before the zstd stage; of codes without a width of their own, of the widest.
        dtype: Type of the codes where they are floats, which have no scales.
        search: How scales are chosen where codes are integers, in two's complement; codes of floats and signs need none.
        auto: Whether `values="auto"` may take it where its noise is small enough.
        feature: The required feature that a pack with such a term names; empty for the codecs of version 1.0, which need none.
        coding: How codes become bytes: floats as byte planes, integers and signs as fields of `bits` bits, `"trits"`, levels of a uniform
            quantiser, which are entropy-coded (`"levels"`); or that there is no code for an element, but two factors.
    """

    name: str
    bits: int
    dtype: DType | None = None
    search: ScaleSearch | None = None
    auto: bool = False
    feature: str = ""
    coding: Coding = "fields"

    def __post_init__(self) -> None:
        if self.coding in ("trits", "levels", "factors"):
            fits = self.dtype is None and self.search is None and bool(self.feature)
        elif self.dtype is not None:
            fits = self.bits == 8 * self.dtype.itemsize and self.search is None and self.coding == "planes"
        elif self.search is not None:
            fits = self.bits in FIELDS and self.search.top <= 1 << self.bits - 1
        else:
            fits = self.bits == 1
        if not fits:
            raise ValueError(f"no such value codec: {self}")

    @property
    def scaled(self) -> bool:
        """Whether codes have scales."""
        return self.dtype is None and self.coding != "factors"

    @property
    def grouped(self) -> bool:
        """Whether groups of codes have scales of their own, unless the term says otherwise (`SCALES`)."""
        return self.scaled and self.coding == "fields"

    @property
    def form(self) -> str:
        """How a code is read: `"int"`, `"sign"`, the name of a float type, or a coding. An engine serves forms, whatever codec has them."""
        if self.coding not in ("planes", "fields"):
            return self.coding
        return self.dtype.name if self.dtype is not None else "sign" if self.search is None else "int"


@dataclass(frozen=True)
class Parameter:
    """A number that a term says beside its codec; a field of `deltapack.format.index.Term`.

    Attributes:
        name: Its key.
        least: Smallest value.
        most: Largest value.
        digits: Hexadecimal digits that it is spelled in; 0: a JSON integer.
    """

    name: str
    least: int
    most: int
    digits: int = 0

    def spelled(self, value: int) -> int | str:
        """Return a value as the index spells it."""
        return f"{value:0{self.digits}x}" if self.digits else value


@dataclass(frozen=True)
class IndexCodec:
    """One way to say which elements are kept.

    Attributes:
        name: Its name in the index.
        kept: Whether positions are `"stored"` in a stream, drawn at `"random"` from a key, or are `"all"`.
        parameters: What it says in the index.
        feature: As that of a value codec.
    """

    name: str
    kept: Literal["stored", "random", "all"]
    parameters: tuple[Parameter, ...] = ()
    feature: str = ""


VALUE_CODECS: Mapping[str, ValueCodec] = {
    row.name: row
    for row in (
        ValueCodec("f32", 32, BY_NAME["f32"], coding="planes"),
        ValueCodec("bf16", 16, BY_NAME["bf16"], auto=True, coding="planes"),
        ValueCodec("f16", 16, BY_NAME["f16"], coding="planes"),
        ValueCodec("int8", 8, search=ScaleSearch(128, 7, 1), auto=True),
        ValueCodec("uniform", 8, feature="uniform", coding="levels"),
        ValueCodec("int4", 4, search=ScaleSearch(8, 4, 12), auto=True),
        ValueCodec("int3", 4, search=ScaleSearch(4, 4, 12), auto=True),
        ValueCodec("int2", 2, search=ScaleSearch(2, 4, 16), auto=True),
        ValueCodec("ternary", 2, feature="ternary", coding="trits"),
        ValueCodec("sign", 1),
    )
}
"""Value codecs by name, from the widest code to the narrowest: `auto` tries them from the end."""

FACTORS = ValueCodec("factors", 0, feature="factors", coding="factors")
"""What a dense term of low rank says in place of a value codec: it has no code for an element (spec/codecs/factors.md)."""

SCALES = ("tensor", "rows", "outer")
"""What a term may say instead of a scale for each group of codes: one for all, times one of the row, times one of the column."""

MOST_LINES = 1 << 24
"""Rows and columns of a term that has scales of them: they are held in memory."""

_KEY = Parameter("key", 0, (1 << 64) - 1, 16)
INDEX_CODECS: Mapping[str, IndexCodec] = {
    row.name: row
    for row in (
        IndexCodec("seeded", "random", (Parameter("keep", 1, (1 << 32) - 1), _KEY)),
        IndexCodec("stratified", "random", (Parameter("keep", 1 << 16, (1 << 32) - 1), _KEY), "stratified"),
        IndexCodec("gaps", "stored", (Parameter("shift", 0, 15),)),
        IndexCodec("bitmap", "stored"),
        IndexCodec("all", "all"),
    )
}
"""Index codecs by name."""


LINES = "scales"
"""The feature of packs with terms that say how they are scaled (`SCALES`)."""
RAW_TYPES = "raw-types"
"""The feature of packs with element types that are not in the table of spec/03-index.md section 3.6."""


def known_features() -> frozenset[str]:
    """Return the required features of codecs that this version reads (spec/05-versioning.md)."""
    rows: tuple[ValueCodec | IndexCodec, ...] = (*VALUE_CODECS.values(), FACTORS, *INDEX_CODECS.values())
    return frozenset(row.feature for row in rows if row.feature) | {FILE_BASE, FOLDERS, LINES, RAW_TYPES}
