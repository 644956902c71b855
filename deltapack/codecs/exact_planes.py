"""Numbers coded byte plane by byte plane: those without a partner, and differences of a structure that nobody foresaw (exact.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, varint, write_stream
from deltapack.codecs.exact_coding import Tiles, decode_symbols, lanes_for, lengths_of, read_tiles, write_tiles
from deltapack.codecs.exact_table import MOST_TABLE_BYTES, Table, read_table, write_table
from deltapack.codecs.planes import join_planes, split_planes
from deltapack.format.frames import compress_frame, decompress_frame
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import EXACT_BLOCK, TILE, Bits, Bytes

__all__ = ["Coded", "Part", "decode_planes", "encode_planes", "estimate_planes", "read_planes"]

_STORED, _CONSTANT, _CODED, _ZSTD, _TILES = range(5)
_ALONE, _MOVED = range(2)
_BYTES = Numbers(8, 1, 0, 0, 0, 7)
"""A byte of a plane is its own symbol; there is one context."""
_SAMPLE, _GLANCE, _PLACES = 1 << 14, 1 << 12, 4
_WORTHWHILE, _UNFORESEEN = 0.997, 0.97
"""Coding takes time: for less than these shares of what is there, plain or foreseen, it is not worth it."""
_MOST_LANES = 8
"""A plane has too few bits for the states of more."""


def encode_planes(base: Bits | None, tuned: Bits, numbers: Numbers) -> bytes:
    """Encode numbers alone (`base` is none), or what was added to those of the base, as integers."""
    planes = _planes(base, tuned, numbers)
    return bytes([_ALONE if base is None else _MOVED]) + b"".join(map(_encode_plane, planes))


def estimate_planes(base: Bits | None, tuned: Bits, numbers: Numbers) -> float:
    """Return about how many bytes `encode_planes` would need, from a sample of 4,096 numbers from four places.

    Structure that nobody foresaw, such as rows that are repeated, may be anywhere.
    """
    planes = _planes(None if base is None else _sampled(base), _sampled(tuned), numbers)
    counts, scale = [_counts(plane) for plane in planes], len(tuned) / min(_GLANCE, len(tuned))
    coded = sum(min(_entropy(own) * scale + 2 * np.count_nonzero(own) + 4 * _MOST_LANES, len(tuned)) for own in counts)
    return min(coded, len(compress_frame(b"".join(map(bytes, planes)), 1)) * scale)


def _sampled(numbers: Bits) -> Bits:
    """Return the numbers that are looked at: all of a few, else stretches that are spread evenly."""
    if len(numbers) <= _GLANCE:
        return numbers
    stretch = _GLANCE // _PLACES
    starts = [place * (len(numbers) - stretch) // (_PLACES - 1) for place in range(_PLACES)]
    return np.concatenate([numbers[start : start + stretch] for start in starts])


def _planes(base: Bits | None, tuned: Bits, numbers: Numbers) -> list[Bytes]:
    """Return the planes; the sign of numbers that stand alone goes below the mantissa, so that the highest plane is the exponent."""
    if base is not None:
        whole = tuned - base
    elif numbers.signed:
        whole = (tuned << tuned.dtype.type(1)) | (tuned >> tuned.dtype.type(numbers.width - 1))
    else:
        whole = tuned
    return list(np.frombuffer(split_planes(whole), np.uint8).reshape(numbers.width // 8, -1))


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the bytes that an order-0 code of bytes takes that occur so often."""
    used, total = counts[counts > 0], int(counts.sum())
    return float(total * np.log2(max(1, total)) - (used * np.log2(used)).sum()) / 8


def _coded_size(counts: NDArray[np.int64]) -> float:
    """Return about how many bytes range coding takes, with its table and states."""
    return _entropy(counts) + 2 * np.count_nonzero(counts) + 4 * _MOST_LANES * -(-int(counts.sum()) // TILE)


def _counts(plane: Bytes) -> NDArray[np.int64]:
    """Return how often each byte occurs, `[256]`; of many, numpy takes long to make integers of eight bytes of them first."""
    if len(plane) <= _GLANCE:
        return np.bincount(plane, minlength=256).astype(np.int64)
    one_class, counts = np.zeros(-(-len(plane) // EXACT_BLOCK), np.uint8), np.zeros(256, np.int64)
    ((found,),) = kernels.active().count_symbols(plane, one_class, plane, _BYTES, 1)[1]
    counts[: len(found)] = found
    return counts


def _encode_plane(plane: Bytes) -> bytes:
    """Encode a plane as a whole, or tile by tile where tables of their own pay."""
    tiles = [plane[start : start + TILE] for start in range(0, len(plane), TILE)]
    counts = [_counts(tile) for tile in tiles]
    whole = np.sum(counts, axis=0)
    apart = sum(min(int(own.sum()), _coded_size(own), np.inf if np.count_nonzero(own) > 1 else 1) for own in counts)
    if apart < _WORTHWHILE * min(len(plane), _coded_size(whole)):
        return bytes([_TILES]) + b"".join(map(_encode_part, tiles, counts))
    return _encode_part(plane, whole)


def _encode_part(plane: Bytes, counts: NDArray[np.int64]) -> bytes:
    if counts[plane[0]] == len(plane):
        return bytes([_CONSTANT, plane[0]])
    candidates = [bytes([_STORED]) + plane.tobytes()]
    if _coded_size(counts) < _WORTHWHILE * len(plane):
        candidates.append(bytes([_CODED]) + _encode_coded(plane, counts))
    start = max(0, len(plane) - _SAMPLE) // 2
    sample = plane[start : start + _SAMPLE]
    if len(plane) <= _SAMPLE or len(compress_frame(sample.tobytes(), 1)) < _UNFORESEEN * _entropy(_counts(sample)):
        frame = compress_frame(plane.tobytes(), 3)
        candidates.append(bytes([_ZSTD]) + varint(len(frame)) + frame)
    return min(candidates, key=len)


def _encode_coded(plane: Bytes, counts: NDArray[np.int64]) -> bytes:
    frequencies = kernels.active().frequencies_of(counts, 12)
    lanes = min(_MOST_LANES, lanes_for(8 * _entropy(counts), len(plane)))
    table = Table(12, lanes, -1, ((0,),), (None,), frequencies[None])
    contexts = np.zeros(len(plane), np.uint8)
    return write_stream(write_table(table, _BYTES)) + write_tiles(contexts, np.ascontiguousarray(plane), table, None)


@dataclass(frozen=True)
class Coded:
    """Bytes of a plane that are coded.

    Attributes:
        table: What they are coded with.
        tiles: The coded bytes.
    """

    table: Table
    tiles: Tiles


@dataclass(frozen=True)
class Part:
    """A plane, or a tile of one.

    Attributes:
        length: Its bytes.
        content: They; or one byte, which all of them are; or what they are coded as.
    """

    length: int
    content: bytes | Coded

    def decode(self) -> bytes:
        """Return the bytes.

        Raises:
            FormatError: Coded bytes do not end where they should (rule R9).
        """
        if isinstance(self.content, Coded):
            return decode_symbols(np.zeros(self.length, np.uint8), self.content.table, self.content.tiles).tobytes()
        return self.content if len(self.content) == self.length else self.content * self.length


def decode_planes(cursor: Cursor, base: Bits | None, length: int, numbers: Numbers) -> Bits:
    """Decode `length` numbers.

    Raises:
        FormatError: What the cursor reads is damaged (rules R8 to R10).
    """
    moves, planes = read_planes(cursor, length, numbers, has_base=base is not None)
    whole: Any = join_planes(b"".join(part.decode() for plane in planes for part in plane), numbers.storage)
    one, rest = whole.dtype.type(1), whole.dtype.type(numbers.width - 1)
    alone = (whole >> one) | (whole << rest) if numbers.signed else whole
    out: Bits = whole + base if moves else alone
    return out


def read_planes(cursor: Cursor, length: int, numbers: Numbers, has_base: bool) -> tuple[bool, list[list[Part]]]:
    """Read whether planes are what is added to the base, and the parts of each; one part, or one for each tile.

    Raises:
        FormatError: What the cursor reads is damaged (rules R8 to R10).
    """
    kind = cursor.byte("the kind of planes")
    need(kind == _ALONE or (kind == _MOVED and has_base), "no such kind of planes", found=kind)
    return kind == _MOVED, [_read_plane(cursor, length, _TILES) for _ in range(numbers.width // 8)]


def _read_plane(cursor: Cursor, length: int, most: int) -> list[Part]:
    """Read a plane or, where `most` is less than `_TILES`, one of its tiles."""
    mode = cursor.byte("the mode of a plane")
    need(mode <= most, "no such mode of a plane", expected=f"at most {most}", found=mode)
    if mode == _TILES:
        return [part for own in lengths_of(length) for part in _read_plane(cursor, own, _ZSTD)]
    if mode == _STORED:
        return [Part(length, cursor.take(length, "a plane"))]
    if mode == _CONSTANT:
        return [Part(length, cursor.take(1, "a plane"))]
    if mode == _ZSTD:
        frame = cursor.take(cursor.number(2 * length + 64, "the length of a frame"), "a plane")
        return [Part(length, decompress_frame(frame, length))]
    table = read_table(cursor.stream(1, MOST_TABLE_BYTES, "the table of a plane"), _BYTES)
    need(table.kinds == 1, "two classes in a plane")
    return [Part(length, Coded(table, read_tiles(cursor, length, table.lanes, has_raw=False)))]
