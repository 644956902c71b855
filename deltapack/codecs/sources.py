"""Where the streams of a term's chunks come from: a pack on the disk, or memory; and how long each may be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from deltapack.codecs import indices, values
from deltapack.codecs.factors import FactorChunks, factor_chunks
from deltapack.codecs.scaling import lines_of_term
from deltapack.errors import FormatError
from deltapack.format.index import Entry, Term
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.format.table import ChunkRecord, Layout, tile_lengths
from deltapack.kernels.layout import Counts, Lines

__all__ = [
    "Bounds",
    "LinedChunks",
    "LoadedChunks",
    "TermChunks",
    "coded_chunks",
    "load_term_chunks",
    "stream_bounds",
    "term_chunks",
    "term_layout",
    "tiles_of",
]

Bounds = tuple[tuple[int, int], ...]


class TermChunks(Protocol):
    """Where the raw streams of a term's chunks come from: a `ChunkedBlob` on the disk, `LinedChunks` or `LoadedChunks`."""

    @property
    def layout(self) -> Layout:
        """Which elements each chunk covers."""

    @property
    def records(self) -> tuple[ChunkRecord, ...]:
        """The table."""

    def streams(self, chunk: int, bounds: Bounds) -> list[bytes]:
        """Return the raw streams of a chunk."""

    def locate(self, error: FormatError) -> None:
        """Name pack and tensor in an error."""


def term_layout(term: Term, common: int) -> Layout:
    """Return the layout of a term that covers `common` elements."""
    return Layout(common, len(term.streams), has_counts=True)


@dataclass(frozen=True)
class LinedChunks:
    """Chunks on the disk of a term whose rows have scales."""

    blob: ChunkedBlob
    lines: Lines

    @property
    def layout(self) -> Layout:
        """Layout of the blob."""
        return self.blob.layout

    @property
    def records(self) -> tuple[ChunkRecord, ...]:
        """Table of the blob."""
        return self.blob.records

    def streams(self, chunk: int, bounds: Bounds) -> list[bytes]:
        """Return the raw streams of a chunk."""
        return self.blob.streams(chunk, bounds)

    def locate(self, error: FormatError) -> None:
        """Name pack and tensor in an error."""
        self.blob.locate(error)


@dataclass(frozen=True)
class LoadedChunks:
    """The raw streams of a term's chunks, checked and held in memory."""

    blob: TermChunks
    raw: tuple[list[bytes], ...]
    lines: Lines | None = None

    @property
    def layout(self) -> Layout:
        """Layout of the blob."""
        return self.blob.layout

    @property
    def records(self) -> tuple[ChunkRecord, ...]:
        """Table of the blob."""
        return self.blob.records

    @property
    def nbytes(self) -> int:
        """Bytes of the streams."""
        of_lines = 0 if self.lines is None else self.lines.rows.nbytes + self.lines.columns.nbytes
        return sum(len(stream) for streams in self.raw for stream in streams) + of_lines

    def streams(self, chunk: int, bounds: Bounds) -> list[bytes]:
        """Return the raw streams of a chunk; their sizes were checked when they were loaded."""
        return self.raw[chunk]

    def locate(self, error: FormatError) -> None:
        """Name pack and tensor in an error."""
        self.blob.locate(error)


def term_chunks(reader: PackReader, entry: Entry, term: Term) -> TermChunks | FactorChunks:
    """Return the chunks of a term of an entry.

    Raises:
        FormatError: Their table, or the scales of their rows, are damaged.
    """
    return factor_chunks(reader, entry, term) if term.is_factors else coded_chunks(reader, entry, term)


def coded_chunks(reader: PackReader, entry: Entry, term: Term) -> TermChunks:
    """Return the chunks of a term that has codes for its elements.

    Raises:
        FormatError: Their table, or the scales of their rows, are damaged.
    """
    blob = reader.chunked_blob(term.blob, term_layout(term, entry.common), term.nnz, entry.name)
    lines = lines_of_term(reader, entry, term)
    return blob if lines is None or term.lines is None else LinedChunks(blob, lines)


def load_term_chunks(blob: TermChunks | FactorChunks, term: Term) -> LoadedChunks | FactorChunks:
    """Read and decompress all chunks of a term.

    Raises:
        FormatError: Rule R8 or R10 is broken; of factors, R9.
    """
    if isinstance(blob, FactorChunks):
        return blob.load()
    chunks = range(blob.layout.chunks)
    raw = tuple(blob.streams(chunk, stream_bounds(term, *tiles_of(blob, chunk))) for chunk in chunks)
    return LoadedChunks(blob, raw, blob.lines if isinstance(blob, LinedChunks) else None)


def tiles_of(blob: TermChunks, chunk: int) -> tuple[Counts, Counts]:
    """Return kept elements and elements of each tile of a chunk."""
    return np.array(blob.records[chunk].counts, np.int64), _lengths(blob.layout.chunk_length(chunk))


@lru_cache
def _lengths(length: int) -> Counts:
    # Not made read-only: numba would compile every loop once more for that.
    return np.array(tile_lengths(length), np.int64)


def stream_bounds(term: Term, counts: Counts, lengths: Counts) -> Bounds:
    """Return the smallest and largest raw length of each stream (rule R8)."""
    bounds = [values.codes_raw_bounds(term.values, int(counts.sum()))]
    if "index" in term.streams:
        bounds.insert(0, indices.index_raw_bounds(term.index, term.shift, counts, lengths))
    if "scales" in term.streams:
        bounds.append((values.scales_raw_length(counts),) * 2)
    return tuple(bounds)
