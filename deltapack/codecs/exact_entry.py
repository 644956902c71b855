"""A tensor that a pack codes exactly: its steps, chunk by chunk (spec/03-index.md section 3.12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltapack.codecs.exact import decode_exact_chunk
from deltapack.codecs.exact_tables import SharedTables
from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.format.blobs import BlobRef
from deltapack.format.digest import CHUNK
from deltapack.format.index import Entry
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.format.table import Layout
from deltapack.format.writer import StoredChunk
from deltapack.kernels import rounding
from deltapack.kernels.layout import Elements

__all__ = ["ExactTensor", "exact_bytes", "exact_layout", "padded_base", "stored_exact"]


def exact_layout(numel: int) -> Layout:
    """Return the layout of a step of `numel` elements."""
    return Layout(numel, 1, has_counts=False)


def stored_exact(data: bytes) -> StoredChunk:
    """Return what `encode_exact_chunk` gave as a pack stores it."""
    return StoredChunk((data,), (len(data),))


def exact_bytes(blob: ChunkedBlob, chunk: int, dtype: DType) -> bytes:
    """Return the bytes of a chunk of a step.

    Raises:
        FormatError: They are damaged, or more than any elements take (rule R8).
    """
    most = 64 + 2 * blob.layout.chunk_length(chunk) * dtype.itemsize
    stored, raw = blob.records[chunk].streams[0]
    if stored != raw:
        error = FormatError("an exact chunk is stored as a frame", rule="R8", expected=raw, found=stored)
        blob.locate(error)
        raise error
    return blob.streams(chunk, ((1, most),))[0]


def padded_base(base: Elements, source: DType, dtype: DType, length: int) -> Elements | None:
    """Return the elements that a chunk of `length` elements starts from: the base's in its type, zeros past their end; none where none.

    Args:
        base: Elements of the base at the places of the chunk, at most `length` of them.
        source: Their type.
        dtype: Type of the chunk.
        length: Its number of elements.
    """
    if not len(base):
        return None
    converted = base if source == dtype else rounding.convert(base, source, dtype)
    return converted if len(base) == length else np.concatenate([converted, np.zeros(length - len(base), dtype.storage)])


@dataclass(frozen=True)
class ExactTensor:
    """What an exact entry says of its elements.

    Attributes:
        reader: The pack.
        entry: The entry.
        blobs: The chunks of each step.
    """

    reader: PackReader
    entry: Entry
    blobs: tuple[ChunkedBlob, ...]

    @classmethod
    def of(cls, reader: PackReader, entry: Entry) -> ExactTensor:
        """Read the tables of its blobs.

        Raises:
            FormatError: One is damaged.
        """
        layout = exact_layout(entry.numel)
        return cls(reader, entry, tuple(reader.chunked_blob(step.blob, layout, 0, entry.name) for step in entry.exact))

    @property
    def refs(self) -> tuple[BlobRef, ...]:
        """Its blobs."""
        return tuple(step.blob for step in self.entry.exact)

    @property
    def dtype(self) -> DType:
        """Type of its elements."""
        return self.entry.dtype

    @property
    def start(self) -> int:
        """The place of the first element that it holds."""
        return 0

    @property
    def nbytes(self) -> int:
        """What its steps take in the pack."""
        return sum(ref.length for ref in self.refs)

    def part(self, chunk: int, base: Elements, source: DType) -> Elements:
        """Return the elements of a chunk, `[length]` in the storage type of the entry, in memory of their own.

        Args:
            chunk: Its number.
            base: Elements of the base tensor at its places, as far as that has them; not looked at where that is no partner.
            source: Their type.

        Raises:
            FormatError: The pack is damaged (rules R8 to R10).
        """
        length = max(0, min(CHUNK, self.entry.numel - chunk * CHUNK))
        has_partner = self.entry.partner is not None
        now = padded_base(base[:length], source, self.dtype, length) if has_partner and length else None
        for blob, step in zip(self.blobs, self.entry.exact, strict=True) if length else ():
            data, tables = exact_bytes(blob, chunk, self.dtype), SharedTables(self.reader.tables, step.tables)
            try:
                now = decode_exact_chunk(data, now, self.dtype, length, tables)
            except FormatError as error:
                blob.locate(error)
                raise
        return np.zeros(0, self.dtype.storage) if now is None else now

    def read(self, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of a tensor without a partner.

        Raises:
            FormatError: The pack is damaged.
        """
        nothing = np.zeros(0, self.dtype.storage)
        if start >= stop:
            return nothing
        first, last = start // CHUNK, (stop - 1) // CHUNK
        parts = [self.part(chunk, nothing, self.dtype) for chunk in range(first, last + 1)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return joined[start - first * CHUNK : stop - first * CHUNK]
