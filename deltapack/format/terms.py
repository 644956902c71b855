"""What is added to a tensor of the base, as a frozen record. Implements spec/03-index.md section 3.4."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from deltapack.format.blobs import BlobRef
from deltapack.format.codecs import FACTORS, INDEX_CODECS, LINES, VALUE_CODECS, IndexCodec, ValueCodec

__all__ = ["Term", "bits_of_f32", "f32_of_bits"]


def f32_of_bits(bits: str) -> float:
    """Return the value of an f32 given as 8 hexadecimal digits."""
    value: float = struct.unpack(">f", bytes.fromhex(bits))[0]
    return value


def bits_of_f32(value: float) -> str:
    """Return the bits of `value`, rounded to f32, as 8 hexadecimal digits."""
    return struct.pack(">f", value).hex()


@dataclass(frozen=True)
class Term:
    """One difference of a tensor: sparse, or a product of two factors.

    Attributes:
        index: Index codec.
        values: Value codec.
        factor: Rescale, an f32 held in a Python float.
        nnz: Number of kept elements.
        blob: Its chunks; of factors, their codes.
        keep: K of the seeded codec: density * 2^32.
        key: Mask key of the seeded codec, 64 bits.
        shift: Low bits of a gap that the gaps codec packs.
        scales: How codes are scaled, of `deltapack.format.codecs.SCALES`; empty where groups have scales, or codes have none.
        scale: What all are scaled with then, an f32 held in a Python float.
        lines: Scales of rows and columns.
        rank: Number of columns of each factor.
        bits: Bits of a code of a factor.
    """

    index: str
    values: str
    factor: float
    nnz: int
    blob: BlobRef
    keep: int = 0
    key: int = 0
    shift: int = 0
    scales: str = ""
    scale: float = 0.0
    lines: BlobRef | None = None
    rank: int = 0
    bits: int = 0

    @property
    def index_codec(self) -> IndexCodec:
        """The row of its index codec."""
        return INDEX_CODECS[self.index]

    @property
    def value_codec(self) -> ValueCodec:
        """The row of its value codec."""
        return FACTORS if self.is_factors else VALUE_CODECS[self.values]

    @property
    def is_factors(self) -> bool:
        """Whether it is a product of two factors."""
        return self.values == FACTORS.name

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the stored streams of a chunk, in order; factors have no chunks."""
        return () if self.is_factors else _streams(self.index, self.values, bool(self.scales))

    @property
    def features(self) -> frozenset[str]:
        """What a reader has to know for it."""
        return frozenset((self.index_codec.feature, self.value_codec.feature, LINES if self.scales else "")) - {""}

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Its blobs in file order."""
        return (self.blob,) if self.lines is None else (self.blob, self.lines)

    def to_json(self) -> dict[str, Any]:
        """Return the term as the index spells it."""
        return {
            "index": self.index,
            "values": self.values,
            "factor": bits_of_f32(self.factor),
            "nnz": self.nnz,
            "blob": self.blob.to_json(),
            **{row.name: row.spelled(getattr(self, row.name)) for row in self.index_codec.parameters},
            **({"scales": self.scales, "scale": bits_of_f32(self.scale)} if self.scales else {}),
            **({} if self.lines is None else {"lines": self.lines.to_json()}),
            **({"rank": self.rank, "bits": self.bits} if self.is_factors else {}),
        }


@cache
def _streams(index: str, values: str, scaled_alike: bool) -> tuple[str, ...]:
    """Return the stored streams of a pair of codecs; both are known, so there are few."""
    positions = ("index",) if INDEX_CODECS[index].kept == "stored" else ()
    scales = ("scales",) if VALUE_CODECS[values].grouped and not scaled_alike else ()
    return (*positions, "codes", *scales)
