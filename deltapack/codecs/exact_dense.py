"""Numbers coded as differences from those of a base: symbols in contexts, and raw bits (spec/codecs/exact.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need
from deltapack.codecs.exact_coding import Tiles, decode_symbols, read_tiles, write_tiles
from deltapack.codecs.exact_modelling import Plan
from deltapack.codecs.exact_table import LANES, MOST_TABLE_BYTES, Table, read_table
from deltapack.codecs.exact_tables import SharedTables
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import EXACT_BLOCK, Bits, Bytes

__all__ = ["Dense", "decode_dense", "read_dense", "read_shared", "write_values"]


def write_values(plan: Plan, tuned: Bits, numbers: Numbers) -> bytes:
    """Encode the numbers that a plan was made for: what follows the form."""
    loops, table = kernels.active(), plan.table
    contexts = loops.contexts_of(plan.base, plan.classes, table.maps, numbers)
    raw = loops.raw_bits_of(plan.predicted, tuned, plan.symbols, numbers, table.far)
    return plan.head + write_tiles(contexts, plan.symbols, table, raw)


@dataclass(frozen=True)
class Dense:
    """What is stored of differences.

    Attributes:
        table: What they are coded with.
        classes: Of each 128 numbers, `[blocks]`.
        tiles: The coded symbols and the raw bits.
    """

    table: Table
    classes: Bytes
    tiles: Tiles


def read_shared(cursor: Cursor, length: int, numbers: Numbers, tables: SharedTables) -> Dense:
    """Read the differences of `length` numbers, with a table that is not in the chunk.

    Raises:
        FormatError: What the cursor reads is damaged, or there is no such table for such numbers (rules R8 to R10).
    """
    number, lanes = divmod(cursor.number((1 << 64) - 1, "the reference to a table"), len(LANES))
    return _read(cursor, length, tables.table(number, numbers).with_lanes(LANES[lanes]))


def read_dense(cursor: Cursor, length: int, numbers: Numbers) -> Dense:
    """Read the differences of `length` numbers.

    Raises:
        FormatError: What the cursor reads is damaged (rules R8 to R10).
    """
    return _read(cursor, length, read_table(cursor.stream(1, MOST_TABLE_BYTES, "the table"), numbers))


def _read(cursor: Cursor, length: int, table: Table) -> Dense:
    blocks = -(-length // EXACT_BLOCK)
    classes = np.zeros(blocks, np.uint8)
    if table.kinds == 2:
        classes = np.frombuffer(cursor.stream(blocks, blocks, "the classes"), np.uint8).copy()
        need(classes.max() < 2, "no such class", found=int(classes.max()))
    tiles = read_tiles(cursor, length, table.lanes, has_raw=True)
    _check_unused(tiles)
    return Dense(table, classes, tiles)


def decode_dense(dense: Dense, base: Bits, numbers: Numbers) -> Bits:
    """Decode as many numbers as the base has.

    Raises:
        FormatError: Symbols or raw bits do not end where they should (rule R9).
    """
    loops, table, tiles = kernels.active(), dense.table, dense.tiles
    symbols = decode_symbols(loops.contexts_of(base, dense.classes, table.maps, numbers), table, tiles)
    steps = table.steps
    predicted = base if steps is None else loops.predicted_of(base, dense.classes, steps, numbers)
    out, used = loops.numbers_from(predicted, symbols, tiles.raw, tiles.starts, numbers, table.far)
    need(np.array_equal(used, tiles.bits), "raw bits do not end where they should", expected=tiles.bits.tolist(), found=used.tolist())
    return out


def _check_unused(tiles: Tiles) -> None:
    """Require that bits after the last one of each tile are zero."""
    partial = tiles.bits % 8
    lasts = tiles.raw[np.maximum(tiles.starts + -(-tiles.bits // 8) - 1, 0)].astype(np.int64)
    need(not (lasts >> partial)[partial > 0].any(), "unused bits of the raw bits are set")
