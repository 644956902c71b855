"""The decode-ready form of a term: what a device reads to decode it, checked on the host, in a few large buffers.

The zstd stage is undone and nothing else: codes stay packed, scales stay bf16, a seeded mask stays its key. Stored positions become
one of two gap streams, whichever is smaller, whatever codec stored them, so that a device meets three ways to say which elements are kept:

* **samples** of Philox, which become gaps through a table (`seeded`),
* **gaps**, one u8 each with escapes (spec/codecs/index.md, shift 0), or one u16 each without,
* **bits**, one per element (`bitmap`), or none where every element is kept (`all`).

Each tile has a row that says where its part of each stream starts, so tiles decode in any order and all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs import indices
from deltapack.codecs.chunk import TermChunks, coded_chunks, stream_bounds, tiles_of
from deltapack.codecs.planes import join_planes
from deltapack.errors import FormatError
from deltapack.format.codecs import ValueCodec
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader
from deltapack.kernels.layout import ESCAPE, GROUP, Bytes, Counts
from deltapack.kernels.reference.positions import gap_thresholds, gaps_of
from deltapack.parallel import ordered_map

__all__ = ["ALIGNMENT", "COLUMNS", "KINDS", "SEGMENT_BYTES", "ReadyTerm", "Segments", "lay_out"]

Table = NDArray[np.int64]

KINDS = {"seeded": 0, "gaps": 1, "wide gaps": 2, "bitmap": 3, "all": 4}
COLUMNS = ("kind", "count", "items", "segment", "index", "codes", "first", "scales", "before")
"""Columns of a term's table, which has a row per tile: how positions are given; kept elements; items of the index stream; segment, and
the byte offsets in it of the tile's index stream, of its chunk's codes and of the tile's scales; number of the tile's first code in its
chunk; number of its first kept element in the term."""
ALIGNMENT = 16
SEGMENT_BYTES = 64 << 20
UNBOUNDED = 1 << 30
"""Items of a seeded tile: samples are drawn until the tile ends."""


@dataclass(frozen=True)
class ReadyTerm:
    """A term whose streams lie in segments.

    Attributes:
        entry: The tensor that it belongs to.
        term: The term.
        table: `[tiles, 9] int64`, see `COLUMNS`.
        path: The pack, for messages.
        thresholds: Segment and byte offset of the gap table of a seeded term, `[255] uint32` with 2^32 - S[g + 1] - 1.
    """

    entry: Entry
    term: Term
    table: Table
    path: Path
    thresholds: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _ReadyChunk:
    """One chunk of a term: streams, and for each tile its kept elements, items, and first item and group (in bytes of their stream)."""

    kind: int
    counts: Counts
    items: Counts
    index_at: Counts
    scales_at: Counts
    index: Bytes
    codes: Bytes
    scales: Bytes


class Segments:
    """Buffers that fill up one after the other; full ones are handed on, so that sending overlaps with decoding.

    Args:
        allocate: Returns a buffer of so many bytes.
        send: Takes a buffer and how many of its bytes are used; called in order.
        size: Bytes of a buffer, unless a single stream needs more.
    """

    def __init__(self, allocate: Callable[[int], Bytes], send: Callable[[Bytes, int], None], size: int = SEGMENT_BYTES) -> None:
        self._allocate, self._send, self._size = allocate, send, size
        self._buffer: Bytes = np.zeros(0, np.uint8)
        self._used = 0
        self.number = 0

    def reserve(self, nbytes: int) -> None:
        """Make room, so that what is put next lies in one segment."""
        if self._used + nbytes > len(self._buffer):
            self.flush()
        if not len(self._buffer):
            self._buffer, self._used = self._allocate(max(self._size, nbytes)), 0

    def put(self, stream: Bytes) -> int:
        """Copy a stream to the end of the segment and return its offset there, a multiple of 16."""
        start, end = self._used, self._used + len(stream)
        self._buffer[start:end] = stream
        self._used = padded(end)
        return start

    def flush(self) -> None:
        """Hand on what there is."""
        if len(self._buffer):
            self._send(self._buffer, min(self._used, len(self._buffer)))
            self._buffer, self.number = np.zeros(0, np.uint8), self.number + 1


def padded(nbytes: int) -> int:
    """Return `nbytes` rounded up to the alignment of streams."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def lay_out(reader: PackReader, entries: Iterable[Entry], segments: Segments, workers: int) -> Iterator[ReadyTerm]:
    """Decode the zstd stage of terms, check them, and put their streams into segments.

    Args:
        reader: The pack.
        entries: Whose terms; in this order.
        segments: Where to.
        workers: Threads that decode chunks.

    Yields:
        The terms, each as soon as its streams lie in segments.

    Raises:
        FormatError: A rule from R8 to R10 is broken. Whether a seeded mask keeps as many elements as the table says is left to the device.
    """
    terms = [(entry, term) for entry in entries for term in entry.terms]
    blobs = [coded_chunks(reader, entry, term) for entry, term in terms]
    tasks = ((blob, term, chunk) for (_, term), blob in zip(terms, blobs, strict=True) for chunk in range(blob.layout.chunks))
    chunks = ordered_map(lambda task: _ready_chunk(*task), tasks, workers)
    tables: dict[int, tuple[int, int]] = {}
    try:
        for (entry, term), blob in zip(terms, blobs, strict=True):
            if term.index_codec.kept == "random" and term.keep not in tables:
                thresholds = (gap_thresholds(term.keep) - np.uint64(1)).astype(np.uint32)
                segments.reserve(thresholds.nbytes)
                tables[term.keep] = (segments.number, segments.put(thresholds.view(np.uint8)))
            before, rows = 0, []
            for _ in range(blob.layout.chunks):
                chunk = next(chunks)
                rows.append(_put_chunk(chunk, before, segments))
                before += int(chunk.counts.sum())
            table = np.concatenate(rows) if rows else np.zeros((0, len(COLUMNS)), np.int64)
            yield ReadyTerm(entry, term, table, reader.path, tables.get(term.keep, (0, 0)))
    finally:
        chunks.close()


def _put_chunk(chunk: _ReadyChunk, before: int, segments: Segments) -> Table:
    streams = (chunk.index, chunk.codes, chunk.scales)
    segments.reserve(sum(padded(len(stream)) for stream in streams))
    index, codes, scales = map(segments.put, streams)
    first = np.cumsum(chunk.counts) - chunk.counts
    columns: dict[str, int | Counts] = {
        "kind": chunk.kind,
        "count": chunk.counts,
        "items": chunk.items,
        "segment": segments.number,
        "index": index + chunk.index_at,
        "codes": codes,
        "first": first,
        "scales": scales + chunk.scales_at,
        "before": before + first,
    }
    table = np.empty((len(chunk.counts), len(COLUMNS)), np.int64)
    for number, name in enumerate(COLUMNS):
        table[:, number] = columns[name]
    return table


def _ready_chunk(blob: TermChunks, term: Term, chunk: int) -> _ReadyChunk:
    counts, lengths = tiles_of(blob, chunk)
    streams = dict(zip(term.streams, blob.streams(chunk, stream_bounds(term, counts, lengths)), strict=True))
    try:
        kind, index, items, index_at = _ready_index(term, streams.get("index", b""), chunk, counts, lengths)
        codes = _ready_codes(term.value_codec, streams["codes"], int(counts.sum()))
        scales = _finite(join_planes(streams.get("scales", b""), "<u2"), "bf16", "scale")
    except FormatError as error:
        blob.locate(error)
        raise
    groups = -(-counts // GROUP)
    return _ReadyChunk(kind, counts, items, index_at, 2 * (np.cumsum(groups) - groups), index, codes, scales)


def _ready_index(term: Term, raw: bytes, chunk: int, counts: Counts, lengths: Counts) -> tuple[int, Bytes, Counts, Counts]:
    """Return kind, stream, and for each tile its items and the byte where they start."""
    none, kept = np.zeros(0, np.uint8), term.index_codec.kept
    if kept == "random":
        return KINDS["seeded"], none, np.full_like(lengths, UNBOUNDED), np.zeros_like(lengths)
    if kept == "all":
        return KINDS["all"], none, lengths, np.zeros_like(lengths)
    positions = indices.decode_positions(term, raw, chunk, counts, lengths)
    if term.index == "bitmap":
        return KINDS["bitmap"], np.frombuffer(raw, np.uint8), lengths, (np.cumsum(lengths) - lengths) // 8
    if term.shift == 0 and len(raw) <= 2 * len(positions):
        return _narrow_gaps(np.frombuffer(raw, np.uint8), counts)
    gaps = gaps_of(positions, counts)
    if len(gaps) + int((gaps // ESCAPE).sum()) <= 2 * len(gaps):
        return _narrow_gaps(np.frombuffer(indices.encode_gaps(positions, counts, 0), np.uint8), counts)
    return KINDS["wide gaps"], gaps.astype(np.uint16).view(np.uint8), counts, 2 * (np.cumsum(counts) - counts)


def _narrow_gaps(stream: Bytes, counts: Counts) -> tuple[int, Bytes, Counts, Counts]:
    """Find where each tile's gaps start: behind the last gap of the tile before."""
    ends = np.flatnonzero(stream != ESCAPE) + 1
    starts = np.concatenate([np.zeros(1, np.int64), ends])[np.cumsum(counts) - counts]
    return KINDS["gaps"], stream, np.diff(starts, append=len(stream)), starts


def _ready_codes(codec: ValueCodec, raw: bytes, nnz: int) -> Bytes:
    """Return packed codes as they are, float codes joined from their byte planes; both checked (rule R9)."""
    if codec.dtype is not None:
        return _finite(join_planes(raw, f"<u{codec.dtype.itemsize}"), codec.dtype.name, "code")
    codes = np.frombuffer(raw, np.uint8)
    used = nnz * codec.bits % 8
    if used and codes[-1] >> used:
        raise FormatError("unused bits of the codes are set", rule="R9")
    return codes


def _finite(elements: NDArray[np.generic], dtype: str, what: str) -> Bytes:
    exponent = {"f32": 0x7F800000, "bf16": 0x7F80, "f16": 0x7C00}[dtype]
    bits = elements.view(f"<u{elements.dtype.itemsize}")
    if np.any((bits & bits.dtype.type(exponent)) == exponent):
        raise FormatError(f"a {what} is not finite", rule="R9")
    return np.ascontiguousarray(bits).view(np.uint8)
