"""One chunk of a term, between arrays and stored streams.

This is the only place that knows which codec writes which stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs import indices, values
from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.planes import split_planes
from deltapack.codecs.quantize import quantize, scaled_codes
from deltapack.codecs.scaling import Scaling, lines_of_tensor
from deltapack.codecs.sources import (
    LinedChunks,
    LoadedChunks,
    TermChunks,
    coded_chunks,
    load_term_chunks,
    stream_bounds,
    term_chunks,
    term_layout,
    tiles_of,
)
from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.format.digest import CHUNK, TILES_PER_CHUNK
from deltapack.format.frames import pack_stream
from deltapack.format.index import Term
from deltapack.format.writer import StoredChunk
from deltapack.kernels import Encoded
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Counts, Lines, Positions, Sparse, Values
from deltapack.kernels.reference.positions import tile_counts

__all__ = [
    "LinedChunks",
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


@dataclass(frozen=True)
class TermCodec:
    """How the chunks of a term are written.

    Attributes:
        index: Index codec.
        values: Value codec.
        shift: That of the index codec.
        scaling: How codes are scaled, where groups of them have no scales.
    """

    index: str
    values: str
    shift: int = 0
    scaling: Scaling | None = None


def encode_term_chunk(
    codec: TermCodec,
    positions: Positions,
    differences: NDArray[np.float32],
    counts: Counts,
    length: int,
    factor: np.float32,
    start: int = 0,
) -> tuple[StoredChunk, Sparse]:
    """Encode the kept elements of a chunk.

    Args:
        codec: How to write them.
        positions: `[nnz] uint32`.
        differences: `[nnz] f32`, not rescaled.
        counts: `[tiles] int64` kept elements of each tile.
        length: Elements of the chunk.
        factor: The term's factor.
        start: The chunk's first element, counted in its tensor; only scales of rows ask for it.

    Returns:
        The chunk, and what a decoder will see: positions and values of what is kept after all, which rows that are dropped are not, nor
        elements whose code keeps nothing.

    Raises:
        NonFiniteError: A difference overflows a float codec.
    """
    lines = None if codec.scaling is None else codec.scaling.lines
    if codec.scaling is not None and codec.scaling.drops:
        there = kernels.active().in_kept_rows(positions, start, codec.scaling.lines)
        positions, differences = positions[there], differences[there]
        counts = tile_counts(positions, length)
    scales: list[bytes] = []
    if codec.scaling is None:
        codes, steps = quantize(codec.values, differences, counts)
        scales = [split_planes(steps)] if VALUE_CODECS[codec.values].scaled else []
    else:
        own = kernels.active().scales_at(positions, start, codec.scaling.lines)
        codes = scaled_codes(codec.values, differences, own, codec.scaling.threshold)
    index_bytes = indices.encode_positions(codec.index, codec.shift, positions, counts, length)
    code_bytes = values.pack_codes(codec.values, codes)
    raw = [*([] if index_bytes is None else [index_bytes]), code_bytes, *scales]
    chunk = StoredChunk(tuple(map(pack_stream, raw)), tuple(map(len, raw)), tuple(map(int, counts)))
    if lines is None:
        return chunk, Sparse(positions, values.decode_values(codec.values, code_bytes, b"".join(scales), counts, factor))
    return chunk, _scaled(codec.values, codes.astype(np.int8, copy=False), positions, start, lines, factor)


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
    bits = term.value_codec.bits if term.value_codec.scaled and not term.scales else 0
    trits = term.value_codec.coding == "trits" and term.lines is None
    first = chunk * TILES_PER_CHUNK
    return Encoded(
        term.index, term.shift, term.key, term.keep, first, raw[0], bits, raw[1], raw[2], factor, counts, lengths, trits, term.scale
    )


def _step_by_step(blob: TermChunks, term: Term, chunk: int, encoded: Encoded, out: Sparse) -> Sparse:
    """Decode positions, then values, by their codecs.

    Raises:
        FormatError: A stream is damaged (rule R9).
    """
    lines = _lines(blob, term)
    try:
        positions = indices.decode_positions(term, encoded.positions, chunk, encoded.counts, encoded.lengths, out.positions, lines)
        if lines is None:
            decoded = values.decode_values(term.values, encoded.codes, encoded.scales, encoded.counts, encoded.factor, out.values)
            return Sparse(positions, decoded)
        codes = values.unpack_codes(term.values, encoded.codes, len(positions))
    except FormatError as error:
        blob.locate(error)
        raise
    return _scaled(term.values, codes, positions, chunk * CHUNK, lines, encoded.factor, out.values)


def _lines(blob: TermChunks, term: Term) -> Lines | None:
    if term.lines is None:
        return lines_of_tensor(term)
    assert isinstance(blob, (LinedChunks, LoadedChunks))
    return blob.lines


def _scaled(
    codec: str,
    codes: NDArray[np.int8],
    positions: Positions,
    start: int,
    lines: Lines,
    factor: np.float32,
    out: Values | None = None,
) -> Sparse:
    """Return positions and values of codes without those that keep nothing, which are zeros of trits."""
    if VALUE_CODECS[codec].coding == "trits":
        codes, positions = kernels.active().without_zeros(codes, positions)
    return Sparse(positions, kernels.active().scaled_values(codes, positions, start, lines, factor, out))
