"""What one tensor of a result is made of: base, terms, elements stored whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import TensorInfo
from deltapack.codecs.chunk import TermChunks, add_term_chunk, decode_term_chunk
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.stored import decode_stored_chunk
from deltapack.dtypes import DType
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.index import BlobRef, Entry, Term
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.kernels import rounding
from deltapack.kernels.layout import Elements, Sparse

__all__ = [
    "Elements",
    "FromBase",
    "FromPack",
    "OwnTerm",
    "PackTerm",
    "RowSource",
    "Scratch",
    "StoredRows",
    "StoredTerm",
    "TensorJob",
    "TermSource",
    "UnitedRows",
]

Scratch = Iterator[Sparse]
"""Where decoded terms go; each takes the next."""


class TermSource(Protocol):
    """Where the weighted values of one term come from."""

    def chunk(self, number: int, base: Elements, source: DType, scratch: Scratch) -> Sparse:
        """Return positions and values of a chunk whose base elements are `base`; they may be views of scratch."""

    def add_to(self, number: int, elements: Elements, dtype: DType, scratch: Scratch) -> None:
        """Add a chunk to elements of the base in place, rounded once."""


@dataclass(frozen=True)
class PackTerm:
    """A term of a pack; `factor` is the term's factor times the weight."""

    reader: PackReader
    term: Term
    blob: TermChunks | FactorChunks
    factor: np.float32

    def chunk(self, number: int, base: Elements, source: DType, scratch: Scratch) -> Sparse:
        """Decode a chunk."""
        return decode_term_chunk(self.blob, self.term, number, self.factor, next(scratch))

    def add_to(self, number: int, elements: Elements, dtype: DType, scratch: Scratch) -> None:
        """Decode a chunk and add it to elements in place."""
        add_term_chunk(self.blob, self.term, number, self.factor, elements, dtype, next(scratch))

    def times(self, weight: np.float32) -> PackTerm:
        """Return the term with one more weight in its factor."""
        with np.errstate(over="ignore"):
            return replace(self, factor=self.factor * weight)


class RowSource(Protocol):
    """Elements that are not base plus terms: all of a tensor, or the rows after the common ones."""

    @property
    def dtype(self) -> DType:
        """Their type."""

    @property
    def start(self) -> int:
        """The first one's place in the result."""

    @property
    def nbytes(self) -> int:
        """About what they take in a pack, at most."""

    def read(self, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of the result."""


@dataclass(frozen=True)
class StoredRows:
    """Elements that a pack stores whole; `start` is the first one's place in the result."""

    reader: PackReader
    ref: BlobRef
    blob: ChunkedBlob
    dtype: DType
    start: int = 0

    @property
    def nbytes(self) -> int:
        """What they take in their pack."""
        return self.ref.length

    def part(self, chunk: int, base: Elements, source: DType) -> Elements:
        """Return the elements of a chunk of a tensor that is stored whole, as many as there are of the base."""
        return self.read(chunk * CHUNK, chunk * CHUNK + len(base))

    def read(self, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of the result."""
        first, last = (start - self.start) // CHUNK, (stop - 1 - self.start) // CHUNK
        parts = [decode_stored_chunk(self.blob, self.dtype, chunk) for chunk in range(first, last + 1)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        offset = self.start + first * CHUNK
        return joined[start - offset : stop - offset]


@dataclass(frozen=True)
class UnitedRows:
    """New rows that several packs have: each is its owner's, or, rounded once, the mean of its owners'.

    Attributes:
        dtype: Their type.
        start: The first element's place in the result.
        width: Elements of a row.
        owners: What packs store after their common rows, and which row of the pack's tensor each new row is (-1: the pack lacks it).
    """

    dtype: DType
    start: int
    width: int
    owners: tuple[tuple[StoredRows, NDArray[np.int64]], ...]

    @property
    def nbytes(self) -> int:
        """What they take as they are."""
        return len(self.owners[0][1]) * self.width * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of the result; takes memory for a few chunks, whatever the number of rows."""
        first, last = (start - self.start) // self.width, -(-(stop - self.start) // self.width)
        numbers = np.stack([places[first:last] for _, places in self.owners])
        count = np.count_nonzero(numbers >= 0, axis=0)
        shared = np.flatnonzero(count > 1)
        out, sums = np.zeros((last - first, self.width), self.dtype.storage), np.zeros((len(shared), self.width))
        with np.errstate(over="ignore", invalid="ignore"):
            for (rows, _), places in zip(self.owners, numbers, strict=True):
                for found, elements in self._rows(rows, places):
                    alone = count[found] == 1
                    out[found[alone]] = rounding.convert(elements[alone], rows.dtype, self.dtype)
                    sums[np.searchsorted(shared, found[~alone])] += rounding.to_f64(elements[~alone], rows.dtype)
            out[shared] = rounding.from_f64(sums / count[shared, None], self.dtype)
        offset = self.start + first * self.width
        return out.reshape(-1)[start - offset : stop - offset]

    def _rows(self, rows: StoredRows, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.intp], Elements]]:
        """Yield numbers of rows and the rows, which a pack has in these places; each chunk of it is decoded about once."""
        pieces = places // max(1, CHUNK // self.width)
        for piece in np.unique(pieces[places >= 0]):
            found = np.flatnonzero(pieces == piece)
            low, high = int(places[found].min()), int(places[found].max()) + 1
            yield found, rows.read(low * self.width, high * self.width).reshape(-1, self.width)[places[found] - low]


@dataclass(frozen=True)
class StoredTerm:
    """A tensor stored whole or coded exactly, seen as a dense difference: `weight * (f32(stored) - f32(base))`."""

    rows: StoredRows | ExactTensor
    weight: np.float32

    def chunk(self, number: int, base: Elements, source: DType, scratch: Scratch) -> Sparse:
        """Compute a chunk."""
        stored = self.rows.part(number, base, source)
        with np.errstate(over="ignore", invalid="ignore"):
            delta = rounding.to_f32(stored, self.rows.dtype) - rounding.to_f32(base, source)
            return Sparse(np.arange(len(base), dtype=np.uint32), delta * self.weight)

    def add_to(self, number: int, elements: Elements, dtype: DType, scratch: Scratch) -> None:
        """Compute a chunk and add it to elements in place."""
        kernels.active().add_in_place(elements, dtype, [self.chunk(number, elements, dtype, scratch)])

    def times(self, weight: np.float32) -> StoredTerm:
        """Return the term with one more weight."""
        with np.errstate(over="ignore"):
            return replace(self, weight=self.weight * weight)


OwnTerm = PackTerm | StoredTerm
"""A term of one pack."""


@dataclass(frozen=True)
class FromBase:
    """What starts from a tensor of the base: its leading elements, with what is added to them, and rows of their own.

    Attributes:
        base: The base tensor.
        digest: What its root digest must be; empty where nobody says.
        terms: What is added to the common elements; nothing where the tensor stays as it is.
        exact: What a pack makes of the whole tensor instead.
        rows: The elements after the common ones, where the result has more than the base.
    """

    base: TensorInfo
    digest: str = ""
    terms: tuple[TermSource, ...] = ()
    rows: RowSource | None = None
    exact: ExactTensor | None = None


@dataclass(frozen=True)
class FromPack:
    """What a pack holds without the base.

    Attributes:
        entry: The entry that it is taken from, as it is.
        rows: Its elements.
    """

    entry: Entry
    rows: StoredRows | ExactTensor


@dataclass(frozen=True)
class TensorJob:
    """One tensor to restore.

    Attributes:
        name: Its name in the result.
        dtype: Its type.
        shape: Its shape.
        source: What it is made of.
        digest: What the root digest must be; empty where nobody says.
        pack: The pack that says so, for messages.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    source: FromBase | FromPack
    digest: str = ""
    pack: Path | None = None

    @property
    def numel(self) -> int:
        """Its number of elements; of a raw type, of bytes."""
        return self.dtype.count(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.numel * self.dtype.itemsize

    @property
    def terms(self) -> tuple[TermSource, ...]:
        """What is added to elements of the base."""
        return self.source.terms if isinstance(self.source, FromBase) else ()

    @property
    def common(self) -> int:
        """Number of leading elements that are base plus terms."""
        return min(self.numel, self.source.base.numel) if isinstance(self.source, FromBase) else 0

    @property
    def is_base(self) -> bool:
        """Whether the result has the very bytes of the base tensor."""
        source = self.source
        if not isinstance(source, FromBase):
            return False
        return not source.terms and source.exact is None and self.dtype == source.base.dtype and self.numel == source.base.numel

    @property
    def extent(self) -> int:
        """Elements of the base or of the result, whichever has more."""
        return max(self.numel, self.source.base.numel) if isinstance(self.source, FromBase) else self.numel

    @property
    def chunks(self) -> int:
        """Chunks of work; a tensor without elements is one empty chunk."""
        return max(1, chunk_count(self.extent))
