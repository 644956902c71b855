"""The decode-ready form of a term: what a device reads to decode it, checked on the host, in a few large buffers.

The zstd stage is undone, and entropy coding, which leaves a byte for each code of `uniform`; nothing else: other codes stay packed, scales
stay bf16, a random mask stays its key. Stored positions become one of two gap streams, whichever is smaller, whatever codec stored them,
so that a device meets four ways to say which elements are kept:

* **samples** of Philox, which become gaps through a table (`seeded`), or places in strata (`stratified`),
* **gaps**, one u8 each with escapes (spec/codecs/index.md, shift 0), or one u16 each without,
* **bits**, one per element (`bitmap`), or none where every element is kept (`all`).

Each tile has a row that says where its part of each stream starts, so tiles decode in any order and all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs import indices, values
from deltapack.codecs.chunk import LinedChunks, TermChunks, stream_bounds, term_chunks, tiles_of
from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.planes import join_planes
from deltapack.device.ready_parts import parts_of
from deltapack.device.segments import Segments, Stream, padded
from deltapack.errors import FormatError
from deltapack.format.codecs import ValueCodec
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader
from deltapack.kernels.layout import ESCAPE, GROUP, TILE, Bytes, Counts, Lines
from deltapack.kernels.reference.positions import gap_thresholds, gaps_of
from deltapack.kernels.reference.strata import strata_of
from deltapack.parallel import ordered_map

__all__ = [
    "COLUMNS",
    "KINDS",
    "ReadyTerm",
    "lay_out",
]

Table = NDArray[np.int64]

KINDS = {"seeded": 0, "gaps": 1, "wide gaps": 2, "bitmap": 3, "all": 4, "stratified": 5}
COLUMNS = ("kind", "count", "items", "segment", "index", "codes", "first", "scales", "before")
"""Columns of a term's table, which has a row per tile: how positions are given; kept elements; items of the index stream; segment, and
the byte offsets in it of the tile's index stream, of its chunk's codes and of the tile's scales; number of the tile's first code in its
chunk; number of its first kept element in the term."""
UNBOUNDED = 1 << 30
"""Items of a seeded tile: samples are drawn until the tile ends. Those of a stratified one are its strata."""


@dataclass(frozen=True)
class ReadyTerm:
    """A term whose streams lie in segments.

    Attributes:
        entry: The tensor that it belongs to.
        term: The term.
        table: `[tiles, 9] int64`, see `COLUMNS`.
        path: The pack, for messages.
        parts: What all tiles read, see `deltapack.device.ready_parts.parts_of`, by name.
        drops: Whether rows are dropped.
    """

    entry: Entry
    term: Term
    table: Table
    path: Path
    parts: Mapping[str, Stream]
    drops: bool = False

    @property
    def width(self) -> int:
        """Columns of the tensor, seen as a matrix; at least 1."""
        return max(1, self.entry.shape[-1] if self.entry.shape else 1)

    @property
    def height(self) -> int:
        """Rows of its elements that have terms."""
        return -(-self.entry.common // self.width)


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
        FormatError: A rule from R8 to R10 is broken. Whether a random mask keeps as many elements as the table says is left to the device.
    """
    terms = [(entry, term, term_chunks(reader, entry, term)) for entry in entries for term in entry.terms]
    tasks = ((blob, term, chunk) for _, term, blob in terms if not isinstance(blob, FactorChunks) for chunk in range(blob.layout.chunks))
    chunks = ordered_map(lambda task: _ready_chunk(*task), tasks, workers)
    tables: dict[int, Stream] = {}
    try:
        for entry, term, blob in terms:
            arrays = parts_of(blob)
            parts, drops = {name: segments.place(array) for name, array in arrays.items()}, "rows" in arrays and not arrays["rows"].all()
            if term.index == "seeded":
                if term.keep not in tables:
                    tables[term.keep] = segments.place((gap_thresholds(term.keep) - np.uint64(1)).astype(np.uint32))
                parts["thresholds"] = tables[term.keep]
            dense = isinstance(blob, FactorChunks)
            before, rows = 0, [_dense_rows(entry.common if dense else 0)]
            for _ in range(0 if dense else blob.layout.chunks):
                chunk = next(chunks)
                rows.append(_put_chunk(chunk, before, segments))
                before += int(chunk.counts.sum())
            yield ReadyTerm(entry, term, np.concatenate(rows), reader.path, parts, drops)
    finally:
        chunks.close()


def _dense_rows(common: int) -> Table:
    """Return the table of a term that has a value for each element and no streams of tiles."""
    starts = np.arange(0, common, TILE)
    columns: dict[str, int | Counts] = {name: 0 for name in COLUMNS}
    columns |= {"kind": KINDS["all"], "count": np.minimum(TILE, common - starts), "before": starts}
    return _table(len(starts), columns | {"items": columns["count"]})


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
    return _table(len(chunk.counts), columns)


def _table(tiles: int, columns: Mapping[str, int | Counts]) -> Table:
    table = np.empty((tiles, len(COLUMNS)), np.int64)
    for number, name in enumerate(COLUMNS):
        table[:, number] = columns[name]
    return table


def _ready_chunk(blob: TermChunks, term: Term, chunk: int) -> _ReadyChunk:
    counts, lengths = tiles_of(blob, chunk)
    streams = dict(zip(term.streams, blob.streams(chunk, stream_bounds(term, counts, lengths)), strict=True))
    try:
        lines = blob.lines if isinstance(blob, LinedChunks) else None
        kind, index, items, index_at = _ready_index(term, streams.get("index", b""), chunk, counts, lengths, lines)
        codes = _ready_codes(term.value_codec, streams["codes"], int(counts.sum()))
        scales = _finite(join_planes(streams.get("scales", b""), "<u2"), "bf16", "scale")
    except FormatError as error:
        blob.locate(error)
        raise
    groups = -(-counts // GROUP)
    return _ReadyChunk(kind, counts, items, index_at, 2 * (np.cumsum(groups) - groups), index, codes, scales)


def _ready_index(
    term: Term, raw: bytes, chunk: int, counts: Counts, lengths: Counts, lines: Lines | None
) -> tuple[int, Bytes, Counts, Counts]:
    """Return kind, stream, and for each tile its items and the byte where they start."""
    none, nowhere = np.zeros(0, np.uint8), np.zeros_like(lengths)
    if term.index == "seeded":
        return KINDS["seeded"], none, np.full_like(lengths, UNBOUNDED), nowhere
    if term.index == "stratified":
        return KINDS["stratified"], none, np.array([strata_of(term.keep, length) for length in lengths.tolist()], np.int64), nowhere
    if term.index == "all" and lines is None:
        return KINDS["all"], none, lengths, nowhere
    positions = indices.decode_positions(term, raw, chunk, counts, lengths, None, lines)
    if term.index == "all":
        return KINDS["all"], none, lengths, nowhere
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
    """Return packed codes as they are, float codes joined from their byte planes, levels as bytes; all checked (rule R9)."""
    if codec.dtype is not None:
        return _finite(join_planes(raw, f"<u{codec.dtype.itemsize}"), codec.dtype.name, "code")
    codes = np.frombuffer(raw, np.uint8)
    if codec.coding != "fields":
        unpacked = values.unpack_codes(codec.name, codes, nnz)
        return codes if codec.coding == "trits" else unpacked.view(np.uint8)
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
