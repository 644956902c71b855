"""The decode-ready form of tensors that are restored bit for bit: what a device reads to decode them, checked on the host.

Chunks are taken apart and the zstd stage is undone; coded symbols stay coded. Of each context the first slots of its symbols are sent and
no decoding table, which is up to 32 times as long: engines make it when they need it. Positions become a u32 each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.exact_coding import Tiles, lengths_of
from deltapack.codecs.exact_entry import ExactTensor, exact_bytes
from deltapack.codecs.exact_parts import Parts, firsts_of, read_parts
from deltapack.codecs.exact_planes import Coded, Part
from deltapack.codecs.exact_table import Table
from deltapack.codecs.exact_tables import SharedTables
from deltapack.device.segments import NOWHERE, Segments, Stream
from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.format.index import Entry
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.kernels.exact_numbers import Numbers, numbers_of
from deltapack.kernels.layout import Bytes, Counts
from deltapack.parallel import ordered_map

__all__ = ["ReadyChunk", "ReadyExact", "ReadyPart", "ReadySymbols", "is_decoded", "lay_out_exact"]


@dataclass(frozen=True)
class ReadySymbols:
    """Coded symbols of numbers, with their raw bits.

    Attributes:
        length: How many numbers.
        precision: Of the table.
        lanes: Of the table.
        far: Of the table.
        firsts: The first slot of each symbol in each context, `[contexts, 256] u16`.
        maps: The context of each class and context byte, `[kinds, 256] u8`.
        steps: What is added to the numbers of each class, `[kinds, 64] u64`; or none.
        classes: Of each 128 numbers, `[blocks] u8`; none: all 0.
        states: `[tiles, lanes] u32`.
        words: Of all tiles, u16.
        raw: Raw bits of all tiles, each from a fresh u64 on.
        counts: Words of each tile.
        bits: Raw bits of each tile.
    """

    length: int
    precision: int
    lanes: int
    far: int
    firsts: Stream
    maps: Stream
    steps: Stream
    classes: Stream
    states: Stream
    words: Stream
    raw: Stream
    counts: Counts
    bits: Counts

    @property
    def contexts(self) -> int:
        """Contexts of the table."""
        return self.firsts.nbytes // 512

    @property
    def lengths(self) -> Counts:
        """Numbers of each tile."""
        return np.array(lengths_of(self.length), np.int64)


@dataclass(frozen=True)
class ReadyPart:
    """A plane, or a tile of one.

    Attributes:
        length: Its bytes.
        content: Where they lie: as many, or a single one that they all are; or coded symbols that they are.
    """

    length: int
    content: Stream | ReadySymbols


@dataclass(frozen=True)
class ReadyChunk:
    """A chunk of which any number is given anew.

    Attributes:
        number: Of the chunk in its tensor.
        length: Numbers of the chunk.
        given: How many of them are given anew.
        changed: Which, `[given] u32`; none: all.
        dense: The differences of those from the base, or none.
        planes: The parts of each plane of those; none where they are no planes.
        moves: Whether planes are what is added to the base.
    """

    number: int
    length: int
    given: int
    changed: Stream
    dense: ReadySymbols | None
    planes: tuple[tuple[ReadyPart, ...], ...]
    moves: bool


@dataclass(frozen=True)
class ReadyExact:
    """A tensor whose chunks lie in segments.

    Attributes:
        name: Of the tensor.
        path: The pack, for messages.
        dtype: Type of the elements.
        numel: How many.
        steps: The chunks of each step, without those that are equal; each step starts from the result of the one before.
    """

    name: str
    path: Path
    dtype: DType
    numel: int
    steps: tuple[tuple[ReadyChunk, ...], ...]

    @property
    def numbers(self) -> Numbers:
        """What its elements are coded as."""
        return numbers_of(self.dtype)


def is_decoded(entry: Entry) -> bool:
    """Whether a tensor is decoded on devices: one that is made of a base of its shape, and whose type torch has."""
    partner = entry.partner
    return partner is not None and partner.shape == entry.shape and bool(entry.dtype.torch) and not entry.dtype.raw_bits


def lay_out_exact(reader: PackReader, entries: Iterable[Entry], segments: Segments, workers: int) -> Iterator[ReadyExact]:
    """Take chunks of tensors that are decoded on devices apart, check them, and put their streams into segments.

    Args:
        reader: The pack.
        entries: Its tensors; others are passed over.
        segments: Where to.
        workers: Threads that read chunks.

    Yields:
        The tensors, each as soon as its streams lie in segments.

    Raises:
        FormatError: A rule from R8 to R10 is broken. Whether symbols end where they should is left to the device.
    """
    tensors = [ExactTensor.of(reader, entry) for entry in entries if is_decoded(entry)]
    tasks = (
        (blob, chunk, tensor.dtype, SharedTables(reader.tables, step.tables))
        for tensor in tensors
        for blob, step in zip(tensor.blobs, tensor.entry.exact, strict=True)
        for chunk in range(blob.layout.chunks)
    )
    chunks = ordered_map(lambda task: _read(*task), tasks, workers)
    layer = _Layer(segments)
    try:
        for tensor in tensors:
            steps = [[next(chunks) for _ in range(blob.layout.chunks)] for blob in tensor.blobs]
            ready = tuple(tuple(layer.chunk(number, parts) for number, parts in enumerate(step) if parts.given) for step in steps)
            yield ReadyExact(tensor.entry.name, reader.path, tensor.dtype, tensor.entry.numel, ready)
    finally:
        chunks.close()


def _read(blob: ChunkedBlob, chunk: int, dtype: DType, tables: SharedTables) -> Parts:
    data = exact_bytes(blob, chunk, dtype)
    try:
        return read_parts(data, dtype, blob.layout.chunk_length(chunk), has_base=True, tables=tables)
    except FormatError as error:
        blob.locate(error)
        raise


class _Layer:
    """Puts chunks into segments; tables that are the same, once."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._tables: dict[bytes, tuple[Stream, Stream, Stream]] = {}

    def chunk(self, number: int, parts: Parts) -> ReadyChunk:
        """Put a chunk."""
        changed = NOWHERE if parts.changed is None else self._put(parts.changed.astype(np.uint32, copy=False))
        dense = None if parts.dense is None else self._symbols(parts.given, parts.dense.table, parts.dense.classes, parts.dense.tiles)
        planes = tuple(tuple(self._part(part) for part in plane) for plane in parts.planes)
        return ReadyChunk(number, parts.length, parts.given, changed, dense, planes, parts.moves)

    def _put(self, array: NDArray[Any] | bytes) -> Stream:
        return self._segments.place(np.frombuffer(array, np.uint8) if isinstance(array, bytes) else array)

    def _part(self, part: Part) -> ReadyPart:
        if isinstance(part.content, Coded):
            return ReadyPart(part.length, self._symbols(part.length, part.content.table, np.zeros(0, np.uint8), part.content.tiles))
        return ReadyPart(part.length, self._put(part.content))

    def _table(self, table: Table) -> tuple[Stream, Stream, Stream]:
        firsts, maps, steps = firsts_of(table.frequencies), table.maps, table.steps
        arrays = (firsts, maps, b"" if steps is None else steps)
        key = sha256(b"".join(bytes(part) for part in arrays)).digest()
        if key not in self._tables:
            self._tables[key] = self._put(firsts), self._put(maps), self._put(arrays[2])
        return self._tables[key]

    def _symbols(self, length: int, table: Table, classes: Bytes, tiles: Tiles) -> ReadySymbols:
        return ReadySymbols(
            length,
            table.precision,
            table.lanes,
            table.far,
            *self._table(table),
            NOWHERE if table.kinds == 1 else self._put(classes),
            self._put(tiles.states),
            self._put(tiles.words[: int(tiles.counts.sum())]),
            self._put(_aligned(tiles)),
            tiles.counts,
            tiles.bits,
        )


def _aligned(tiles: Tiles) -> Bytes:
    """Return the raw bits of tiles, each from a fresh u64 on, so that a device loads whole words."""
    sizes = -(-tiles.bits // 64) * 8
    out, starts = np.zeros(int(sizes.sum()), np.uint8), np.cumsum(sizes) - sizes
    for start, first, bits in zip(starts.tolist(), tiles.starts.tolist(), tiles.bits.tolist(), strict=True):
        nbytes = -(-bits // 8)
        out[start : start + nbytes] = tiles.raw[first : first + nbytes]
    return out
