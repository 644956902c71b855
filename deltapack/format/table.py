"""The table at the head of a chunked blob. Implements spec/02-container.md section 2.3."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, TILE, chunk_count

__all__ = ["ChunkRecord", "Layout", "tile_lengths"]


@lru_cache
def tile_lengths(length: int) -> tuple[int, ...]:
    """Return the number of elements of each tile of a chunk of `length` elements.

    >>> tile_lengths(200_000)
    (65536, 65536, 65536, 3392)
    """
    return tuple(min(TILE, length - start) for start in range(0, length, TILE))


@dataclass(frozen=True)
class ChunkRecord:
    """One chunk: hash of its payload, (stored, raw) bytes of each stream, kept elements of each tile."""

    hash: int
    streams: tuple[tuple[int, int], ...]
    counts: tuple[int, ...] = ()

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload."""
        return sum(stored for stored, _ in self.streams)


@dataclass(frozen=True)
class Layout:
    """What a chunked blob covers: `numel` elements, `streams` streams, with or without counts."""

    numel: int
    streams: int
    has_counts: bool

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return chunk_count(self.numel)

    def chunk_length(self, chunk: int) -> int:
        """Return the number of elements of a chunk."""
        return min(CHUNK, self.numel - chunk * CHUNK)

    @property
    def table_bytes(self) -> int:
        """Bytes of the table."""
        if self.chunks == 0:
            return 0
        last = self.chunks - 1
        return last * self._record(CHUNK).size + self._record(self.chunk_length(last)).size

    def encode(self, records: Sequence[ChunkRecord]) -> bytes:
        """Return the bytes of a table."""
        rows = []
        for chunk, record in enumerate(records):
            lengths = [length for stream in record.streams for length in stream]
            rows.append(self._record(self.chunk_length(chunk)).pack(record.hash, *lengths, *record.counts))
        return b"".join(rows)

    def decode(self, data: bytes, payload_bytes: int, nnz: int) -> tuple[ChunkRecord, ...]:
        """Parse a table and check it against what the index says.

        Args:
            data: `table_bytes` bytes.
            payload_bytes: Bytes of the blob after the table.
            nnz: Kept elements of the term; ignored without counts.

        Raises:
            FormatError: Rule R8 is broken.
        """
        records, position = [], 0
        for chunk in range(self.chunks):
            layout = self._record(self.chunk_length(chunk))
            hash_, *fields = layout.unpack_from(data, position)
            position += layout.size
            lengths, counts = fields[: 2 * self.streams], tuple(fields[2 * self.streams :])
            streams = tuple(zip(lengths[::2], lengths[1::2], strict=True))
            for stored, raw in streams:
                if stored > raw:
                    raise FormatError("a stream is stored larger than it is", rule="R8", expected=raw, found=stored)
            for count, length in zip(counts, tile_lengths(self.chunk_length(chunk)), strict=False):
                if count > length:
                    raise FormatError("a tile keeps more than it has", rule="R8", expected=length, found=count)
            records.append(ChunkRecord(hash_, streams, counts))
        found = sum(record.payload_bytes for record in records)
        if found != payload_bytes:
            raise FormatError("chunks do not fill their blob", rule="R8", expected=payload_bytes, found=found)
        kept = sum(sum(record.counts) for record in records)
        if self.has_counts and kept != nnz:
            raise FormatError("tiles keep another number than the index says", rule="R8", expected=nnz, found=kept)
        return tuple(records)

    def _record(self, length: int) -> struct.Struct:
        return _record_layout(self.streams, len(tile_lengths(length)) if self.has_counts else 0)


@lru_cache
def _record_layout(streams: int, tiles: int) -> struct.Struct:
    return struct.Struct(f"<Q{2 * streams}I{tiles}I")
