"""The `codes` of a uniform quantiser, range-coded with one table a chunk (spec/codecs/values.md, *Levels*)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, varints
from deltapack.codecs.exact_coding import decode_symbols, lanes_for, read_tiles, write_tiles
from deltapack.codecs.exact_table import LANES, PRECISIONS, Table
from deltapack.errors import FormatError
from deltapack.kernels.layout import TILE, Counts

__all__ = ["levels_raw_bounds", "pack_levels", "unpack_levels"]

_PRECISION = 12
_LAST = 254
"""The symbol of the level 127."""


def levels_raw_bounds(nnz: int) -> tuple[int, int]:
    """Return the smallest and largest raw length of the stream of `nnz` levels (rule R8)."""
    tiles = -(-nnz // TILE)
    return (6 + 5 * tiles, 514 + 131 * tiles + 2 * nnz) if nnz else (0, 0)


def pack_levels(levels: NDArray[np.int8]) -> bytes:
    """Return the stream of levels `[nnz] int8` from -127 to 127."""
    if not len(levels):
        return b""
    wide = levels.astype(np.int16)
    symbols = np.where(wide < 0, -2 * wide - 1, 2 * wide).astype(np.uint8)
    counts = np.bincount(symbols, minlength=256)
    frequencies = kernels.active().frequencies_of(counts, _PRECISION)
    used = np.flatnonzero(frequencies)
    first, last = int(used[0]), int(used[-1])
    bits = _PRECISION * len(levels) - float(counts[used] @ np.log2(frequencies[used]))
    table = _table(_PRECISION, lanes_for(bits, len(levels)), frequencies)
    head = bytes([table.precision, table.lanes, first, last]) + varints(frequencies[first : last + 1])
    return head + write_tiles(np.zeros(len(levels), np.uint8), symbols, table, None)


def unpack_levels(raw: bytes, nnz: int) -> NDArray[np.int8]:
    """Return `nnz` levels, `[nnz] int8`.

    Raises:
        FormatError: The stream is damaged (rule R9).
    """
    try:
        return _unpacked(raw, nnz)
    except FormatError as error:
        error.what = error.what.replace("exact chunk", "stream of levels", 1)
        raise


def _unpacked(raw: bytes, nnz: int) -> NDArray[np.int8]:
    cursor = Cursor(raw)
    if not nnz:
        cursor.end("no levels")
        return np.zeros(0, np.int8)
    precision, lanes, first, last = cursor.take(4, "the head")
    need(precision in PRECISIONS, "no such precision", expected=PRECISIONS, found=precision)
    need(lanes in LANES, "no such number of lanes", expected=LANES, found=lanes)
    need(first <= last <= _LAST, "no such symbols", expected=f"first <= last <= {_LAST}", found=f"{first} to {last}")
    frequencies = _frequencies(cursor, first, last, 1 << precision)
    tiles = read_tiles(cursor, nnz, lanes, has_raw=False)
    cursor.end("the tiles")
    symbols = decode_symbols(np.zeros(nnz, np.uint8), _table(precision, lanes, frequencies), tiles)
    levels: NDArray[np.int8] = ((symbols >> 1) ^ -(symbols & 1)).view(np.int8)
    return levels


def _frequencies(cursor: Cursor, first: int, last: int, total: int) -> Counts:
    out = np.zeros(256, np.int64)
    out[first : last + 1] = cursor.numbers(last - first + 1, total, "a frequency")
    need(out[first] and out[last], "a first or last symbol that does not occur")
    need(out.sum() == total, "frequencies have another sum", expected=total, found=int(out.sum()))
    return out


def _table(precision: int, lanes: int, frequencies: Counts) -> Table:
    return Table(precision, lanes, -1, ((0,),), (None,), frequencies[None])
