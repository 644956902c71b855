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
from deltapack.codecs.chunk import Room, add_term_chunk, decode_stored_chunk, decode_term_chunk
from deltapack.dtypes import DType
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.index import BlobRef, Entry, Term
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.kernels import rounding
from deltapack.merge_methods.settings import Sparse

__all__ = ["Elements", "OwnTerm", "PackTerm", "Rooms", "StoredRows", "StoredTerm", "TensorJob", "TermSource"]

Elements = NDArray[np.generic]


Rooms = Iterator[Room]
"""Where decoded terms go; each takes the next."""


class TermSource(Protocol):
    """Where the weighted values of one term come from."""

    def chunk(self, number: int, base: Elements, source: DType, rooms: Rooms) -> Sparse:
        """Return positions and values of a chunk whose base elements are `base`; they may be views of rooms."""

    def add_to(self, number: int, elements: Elements, dtype: DType, rooms: Rooms) -> None:
        """Add a chunk to elements of the base in place, rounded once."""


@dataclass(frozen=True)
class PackTerm:
    """A term of a pack; `factor` is the term's factor times the weight."""

    reader: PackReader
    term: Term
    blob: ChunkedBlob
    factor: np.float32

    def chunk(self, number: int, base: Elements, source: DType, rooms: Rooms) -> Sparse:
        """Decode a chunk."""
        return decode_term_chunk(self.blob, self.term, number, self.factor, next(rooms))

    def add_to(self, number: int, elements: Elements, dtype: DType, rooms: Rooms) -> None:
        """Decode a chunk and add it to elements in place."""
        add_term_chunk(self.blob, self.term, number, self.factor, elements, dtype, next(rooms))

    def times(self, weight: np.float32) -> PackTerm:
        """Return the term with one more weight in its factor."""
        with np.errstate(over="ignore"):
            return replace(self, factor=self.factor * weight)


@dataclass(frozen=True)
class StoredRows:
    """Elements that a pack stores whole; `start` is the first one's place in the result."""

    reader: PackReader
    ref: BlobRef
    blob: ChunkedBlob
    dtype: DType
    start: int = 0

    def read(self, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of the result."""
        first, last = (start - self.start) // CHUNK, (stop - 1 - self.start) // CHUNK
        parts = [decode_stored_chunk(self.blob, self.dtype, chunk) for chunk in range(first, last + 1)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        offset = self.start + first * CHUNK
        return joined[start - offset : stop - offset]


@dataclass(frozen=True)
class StoredTerm:
    """A tensor stored whole, seen as a dense difference: `weight * (f32(stored) - f32(base))`."""

    rows: StoredRows
    weight: np.float32

    def chunk(self, number: int, base: Elements, source: DType, rooms: Rooms) -> Sparse:
        """Compute a chunk."""
        stored = self.rows.read(number * CHUNK, number * CHUNK + len(base))
        with np.errstate(over="ignore", invalid="ignore"):
            delta = rounding.to_f32(stored, self.rows.dtype) - rounding.to_f32(base, source)
            return np.arange(len(base), dtype=np.uint32), delta * self.weight

    def add_to(self, number: int, elements: Elements, dtype: DType, rooms: Rooms) -> None:
        """Compute a chunk and add it to elements in place."""
        kernels.active().add_in_place(elements, dtype, [self.chunk(number, elements, dtype, rooms)])

    def times(self, weight: np.float32) -> StoredTerm:
        """Return the term with one more weight."""
        with np.errstate(over="ignore"):
            return replace(self, weight=self.weight * weight)


OwnTerm = PackTerm | StoredTerm
"""A term of one pack."""


@dataclass(frozen=True)
class TensorJob:
    """One tensor to restore.

    Attributes:
        name: Its name in the result; for a tensor that only the base has, its name there.
        dtype: Its type.
        shape: Its shape.
        numel: Its number of elements; 0 where only the base is to be checked.
        base: The tensor that it starts from.
        base_digest: What the base tensor's root digest must be; empty where nobody says.
        terms: What is added to the common elements.
        rows: Elements stored whole: all, or those after the common ones.
        digest: What the root digest must be; empty where nobody says.
        pack: The pack that says so.
        whole: The entry that the tensor is taken from as it is, if it is.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    numel: int
    base: TensorInfo | None = None
    base_digest: str = ""
    terms: tuple[TermSource, ...] = ()
    rows: StoredRows | None = None
    digest: str = ""
    pack: Path | None = None
    whole: Entry | None = None

    @property
    def common(self) -> int:
        """Number of leading elements that are base plus terms."""
        return 0 if self.base is None else min(self.numel, self.base.numel)

    @property
    def is_base(self) -> bool:
        """Whether the result has the very bytes of the base tensor."""
        return self.base is not None and not self.terms and self.dtype == self.base.dtype and self.numel == self.base.numel

    @property
    def extent(self) -> int:
        """Elements of the base or of the result, whichever has more."""
        return max(self.numel, self.base.numel if self.base is not None else 0)

    @property
    def chunks(self) -> int:
        """Chunks of work; a tensor without elements is one empty chunk."""
        return max(1, chunk_count(self.extent))
