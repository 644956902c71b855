"""Symbols of a chunk as range-coded tiles, with raw bits behind them (spec/codecs/exact.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, varint
from deltapack.codecs.exact_table import Table
from deltapack.kernels.layout import RANS_LOW, TILE, Bytes, Counts

__all__ = ["MOST_RAW_BITS", "Tiles", "decode_symbols", "lanes_for", "lengths_of", "read_tiles", "write_tiles"]

MOST_RAW_BITS = 62
"""Of a number: it has 64 bits, of which a symbol says the sign and two or more."""
_SPARE = 16


def lengths_of(length: int) -> list[int]:
    """Return the numbers of each tile."""
    return [min(TILE, length - start) for start in range(0, length, TILE)]


def lanes_for(bits: float, length: int) -> int:
    """Return how many lanes suit symbols that take so many bits: a lane costs three bytes a tile, of which there are to be few."""
    per_tile = bits / max(1, -(-length // TILE))
    return 32 if per_tile > 102_400 else 8 if per_tile > 16_384 else 4 if per_tile > 4_096 else 1


@dataclass(frozen=True)
class Tiles:
    """The coded symbols and the raw bits of the tiles of a chunk.

    Attributes:
        states: That decoding starts from, `[tiles, lanes] u32`.
        counts: Words of each tile.
        words: Of all tiles, `u16`; as read, followed by as many as the longest tile might take.
        bits: Raw bits of each tile.
        raw: Raw bits of all tiles, each from a fresh byte on; as read, followed by as many as the longest tile might take.
    """

    states: NDArray[np.uint32]
    counts: Counts
    words: NDArray[np.uint16]
    bits: Counts
    raw: Bytes

    @property
    def starts(self) -> Counts:
        """The byte that the raw bits of each tile begin in."""
        sizes = -(-self.bits // 8)
        return np.cumsum(sizes) - sizes


def write_tiles(contexts: Bytes, symbols: Bytes, table: Table, raw: tuple[Bytes, Counts] | None) -> bytes:
    """Encode symbols; `raw` is bits and how many each tile has, or none where none can be."""
    states, words, counts = kernels.active().rans_encode(contexts, symbols, table.frequencies, table.precision, table.lanes)
    sizes: Sequence[Counts] = (counts,) if raw is None else (counts, raw[1])
    heads = b"".join(varint(int(size)) for tile in zip(*sizes, strict=True) for size in tile)
    return heads + states.tobytes() + words.tobytes() + (b"" if raw is None else raw[0].tobytes())


def read_tiles(cursor: Cursor, length: int, lanes: int, has_raw: bool) -> Tiles:
    """Read the tiles of `length` numbers.

    Raises:
        FormatError: A tile has more words or bits than its numbers can take, or a state is out of range (rule R9).
    """
    lengths = lengths_of(length)
    counts, bits = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    for tile, own in enumerate(lengths):
        counts[tile] = cursor.number(own, "the number of words")
        bits[tile] = cursor.number(own * MOST_RAW_BITS, "the number of raw bits") if has_raw else 0
    states = cursor.array(len(lengths) * lanes, "<u4", "the states").view(np.uint32).reshape(-1, lanes)
    need(((states >= RANS_LOW) & (states < RANS_LOW << 16)).all(), "a state is out of range", expected="2^15 to 2^31")
    room = max(lengths)
    words = np.empty(int(counts.sum()) + room + 1, np.uint16)
    words[: counts.sum()] = cursor.array(int(counts.sum()), "<u2", "the words")
    size = int((-(-bits // 8)).sum())
    raw = np.empty(size + room * 8 + _SPARE, np.uint8)
    raw[:size] = cursor.array(size, "|u1", "the raw bits")
    return Tiles(states, counts, words, bits, raw)


def decode_symbols(contexts: Bytes, table: Table, tiles: Tiles) -> Bytes:
    """Return the symbols of numbers whose contexts are known.

    Raises:
        FormatError: A tile does not use its words up, or does not end in the first state (rule R9).
    """
    entries = kernels.active().decoding_table(table.frequencies, table.precision)
    symbols, whole = kernels.active().rans_decode(contexts, entries, table.precision, tiles.states, tiles.words, tiles.counts)
    need(whole, "coded symbols do not end where they should")
    return symbols
