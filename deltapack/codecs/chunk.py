"""One chunk of a term, between arrays and stored streams.

This is the only place that knows which codec writes which stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs import indices, values
from deltapack.codecs.factors import FactorChunks, factor_chunks
from deltapack.codecs.planes import split_planes
from deltapack.codecs.quantize import quantize
from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.format.digest import TILES_PER_CHUNK
from deltapack.format.frames import pack_stream
from deltapack.format.index import Entry, Term
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.format.table import ChunkRecord, Layout, tile_lengths
from deltapack.format.writer import StoredChunk
from deltapack.kernels import Encoded
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Counts, Positions, Sparse

__all__ = [
    "LoadedChunks",
    "TermChunks",
    "TermCodec",
    "add_term_chunk",
    "coded_chunks",
    "decode_term_chunk",
    "encode_term_chunk",
    "load_term_chunks",
    "stream_bounds",
    "term_chunks",
    "term_layout",
    "tiles_of",
]


Bounds = tuple[tuple[int, int], ...]


class TermChunks(Protocol):
    """Where the raw streams of a term's chunks come from: a `ChunkedBlob` on the disk, or `LoadedChunks`."""

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


@dataclass(frozen=True)
class TermCodec:
    """How the chunks of a term are written: index codec and its shift, value codec."""

    index: str
    values: str
    shift: int = 0


def term_layout(term: Term, common: int) -> Layout:
    """Return the layout of a term that covers `common` elements."""
    return Layout(common, len(term.streams), has_counts=True)


def encode_term_chunk(
    codec: TermCodec,
    positions: Positions,
    differences: NDArray[np.float32],
    counts: Counts,
    length: int,
    factor: np.float32,
) -> tuple[StoredChunk, NDArray[np.float32]]:
    """Encode the kept elements of a chunk.

    Args:
        codec: How to write them.
        positions: `[nnz] uint32`.
        differences: `[nnz] f32`, not rescaled.
        counts: `[tiles] int64` kept elements of each tile.
        length: Elements of the chunk.
        factor: The term's factor.

    Returns:
        The chunk, and the values that a decoder will see, `[nnz] f32`.

    Raises:
        NonFiniteError: A difference overflows a float codec.
    """
    codes, scales = quantize(codec.values, differences, counts)
    index_bytes = indices.encode_positions(codec.index, codec.shift, positions, counts, length)
    code_bytes, scale_bytes = values.pack_codes(codec.values, codes), split_planes(scales)
    raw = [*([] if index_bytes is None else [index_bytes]), code_bytes, *([scale_bytes] if VALUE_CODECS[codec.values].scaled else [])]
    chunk = StoredChunk(tuple(map(pack_stream, raw)), tuple(map(len, raw)), tuple(map(int, counts)))
    seen = values.decode_values(codec.values, code_bytes, scale_bytes, counts, factor)
    return chunk, seen


def decode_term_chunk(
    blob: TermChunks | FactorChunks,
    term: Term,
    chunk: int,
    factor: np.float32,
    out: Sparse | None = None,
) -> Sparse:
    """Decode a chunk of a term.

    Args:
        blob: The term's chunks.
        term: The term.
        chunk: Number of the chunk.
        factor: What the codes are multiplied with besides their scale.
        out: Arrays of the chunk's length and `SPARE` more that the results are made in; new ones unless given.

    Returns:
        Positions `[nnz] uint32` from the start of the chunk, which are not to be written to, and values `[nnz] f32`.

    Raises:
        FormatError: A rule from R8 to R10 is broken.
    """
    out = Buffers().sparse(0, blob.layout.chunk_length(chunk)) if out is None else out
    if isinstance(blob, FactorChunks):
        return blob.sparse(chunk, factor, out)
    encoded = _encoded(blob, term, chunk, factor)
    decoded = kernels.active().decode_encoded(encoded, out)
    return _step_by_step(blob, term, chunk, encoded, out) if decoded is None else decoded


def add_term_chunk(
    blob: TermChunks | FactorChunks, term: Term, chunk: int, factor: np.float32, elements: NDArray[np.generic], dtype: DType, out: Sparse
) -> None:
    """Decode a chunk of a term and add it to elements in place.

    Args:
        blob: The term's chunks.
        term: The term.
        chunk: Number of the chunk.
        factor: What the codes are multiplied with besides their scale.
        elements: `[n]` elements of the chunk, in the storage type of `dtype`.
        dtype: Their type.
        out: As in `decode_term_chunk`.

    Raises:
        FormatError: A rule from R8 to R10 is broken; nothing was changed.
    """
    if isinstance(blob, FactorChunks):
        blob.add_to(chunk, factor, elements, dtype)
        return
    encoded = _encoded(blob, term, chunk, factor)
    if not kernels.active().add_encoded(elements, dtype, encoded, out):
        kernels.active().add_in_place(elements, dtype, [_step_by_step(blob, term, chunk, encoded, out)])


def _encoded(blob: TermChunks, term: Term, chunk: int, factor: np.float32) -> Encoded:
    counts, lengths = tiles_of(blob, chunk)
    streams = dict(zip(term.streams, blob.streams(chunk, stream_bounds(term, counts, lengths)), strict=True))
    raw = [np.frombuffer(streams.get(name, b""), np.uint8) for name in ("index", "codes", "scales")]
    bits = term.value_codec.bits if term.value_codec.scaled else 0
    first = chunk * TILES_PER_CHUNK
    return Encoded(term.index, term.shift, term.key, term.keep, first, raw[0], bits, raw[1], raw[2], factor, counts, lengths)


def _step_by_step(blob: TermChunks, term: Term, chunk: int, encoded: Encoded, out: Sparse) -> Sparse:
    """Decode positions, then values, by their codecs.

    Raises:
        FormatError: A stream is damaged (rule R9).
    """
    try:
        positions = indices.decode_positions(term, encoded.positions, chunk, encoded.counts, encoded.lengths, out.positions)
        decoded = values.decode_values(term.values, encoded.codes, encoded.scales, encoded.counts, encoded.factor, out.values)
    except FormatError as error:
        blob.locate(error)
        raise
    return Sparse(positions, decoded)


@dataclass(frozen=True)
class LoadedChunks:
    """The raw streams of a term's chunks, checked and held in memory."""

    blob: ChunkedBlob
    raw: tuple[list[bytes], ...]

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
        return sum(len(stream) for streams in self.raw for stream in streams)

    def streams(self, chunk: int, bounds: Bounds) -> list[bytes]:
        """Return the raw streams of a chunk; their sizes were checked when they were loaded."""
        return self.raw[chunk]

    def locate(self, error: FormatError) -> None:
        """Name pack and tensor in an error."""
        self.blob.locate(error)


def term_chunks(reader: PackReader, entry: Entry, term: Term) -> ChunkedBlob | FactorChunks:
    """Return the chunks of a term of an entry.

    Raises:
        FormatError: Their table is damaged.
    """
    return factor_chunks(reader, entry, term) if term.is_factors else coded_chunks(reader, entry, term)


def coded_chunks(reader: PackReader, entry: Entry, term: Term) -> ChunkedBlob:
    """Return the chunks of a term that has codes for its elements.

    Raises:
        FormatError: Their table is damaged.
    """
    return reader.chunked_blob(term.blob, term_layout(term, entry.common), term.nnz, entry.name)


def load_term_chunks(blob: ChunkedBlob | FactorChunks, term: Term) -> LoadedChunks | FactorChunks:
    """Read and decompress all chunks of a term.

    Raises:
        FormatError: Rule R8 or R10 is broken; of factors, R9.
    """
    if isinstance(blob, FactorChunks):
        return blob.load()
    chunks = range(blob.layout.chunks)
    return LoadedChunks(blob, tuple(blob.streams(chunk, stream_bounds(term, *tiles_of(blob, chunk))) for chunk in chunks))


def tiles_of(blob: TermChunks, chunk: int) -> tuple[Counts, Counts]:
    """Return kept elements and elements of each tile of a chunk."""
    return np.array(blob.records[chunk].counts, np.int64), _lengths(blob.layout.chunk_length(chunk))


@lru_cache
def _lengths(length: int) -> Counts:
    # Not made read-only: numba would compile every loop once more for that.
    return np.array(tile_lengths(length), np.int64)


def stream_bounds(term: Term, counts: Counts, lengths: Counts) -> Bounds:
    """Return the smallest and largest raw length of each stream (rule R8)."""
    bounds = [(values.codes_raw_length(term.values, int(counts.sum())),) * 2]
    if "index" in term.streams:
        bounds.insert(0, indices.index_raw_bounds(term.index, term.shift, counts, lengths))
    if "scales" in term.streams:
        bounds.append((values.scales_raw_length(counts),) * 2)
    return tuple(bounds)
