"""Numbers coded as differences from those of a base: symbols in contexts, and raw bits (spec/codecs/exact.md)."""

from __future__ import annotations

import numpy as np

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need
from deltapack.codecs.exact_coding import Tiles, decode_symbols, read_tiles, write_tiles
from deltapack.codecs.exact_modelling import Plan
from deltapack.codecs.exact_table import LANES, MOST_TABLE_BYTES, Table, read_table
from deltapack.codecs.exact_tables import SharedTables
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import EXACT_BLOCK, Bits

__all__ = ["decode_dense", "decode_shared", "write_values"]


def write_values(plan: Plan, tuned: Bits, numbers: Numbers) -> bytes:
    """Encode the numbers that a plan was made for: what follows the form."""
    loops, table = kernels.active(), plan.table
    contexts = loops.contexts_of(plan.base, plan.classes, table.maps, numbers)
    raw = loops.raw_bits_of(plan.predicted, tuned, plan.symbols, numbers, table.far)
    return plan.head + write_tiles(contexts, plan.symbols, table, raw)


def decode_shared(cursor: Cursor, base: Bits, numbers: Numbers, tables: SharedTables) -> Bits:
    """Decode as many numbers as the base has, with a table that is not in the chunk.

    Raises:
        FormatError: What the cursor reads is damaged, or there is no such table for such numbers (rules R8 to R10).
    """
    number, lanes = divmod(cursor.number((1 << 64) - 1, "the reference to a table"), len(LANES))
    return _decode(cursor, base, numbers, tables.table(number, numbers).with_lanes(LANES[lanes]))


def decode_dense(cursor: Cursor, base: Bits, numbers: Numbers) -> Bits:
    """Decode as many numbers as the base has.

    Raises:
        FormatError: What the cursor reads is damaged (rules R8 to R10).
    """
    return _decode(cursor, base, numbers, read_table(cursor.stream(1, MOST_TABLE_BYTES, "the table"), numbers))


def _decode(cursor: Cursor, base: Bits, numbers: Numbers, table: Table) -> Bits:
    loops, blocks = kernels.active(), -(-len(base) // EXACT_BLOCK)
    classes = np.zeros(blocks, np.uint8)
    if table.kinds == 2:
        classes = np.frombuffer(cursor.stream(blocks, blocks, "the classes"), np.uint8).copy()
        need(classes.max() < 2, "no such class", found=int(classes.max()))
    tiles = read_tiles(cursor, len(base), table.lanes, has_raw=True)
    symbols = decode_symbols(loops.contexts_of(base, classes, table.maps, numbers), table, tiles)
    steps = table.steps
    predicted = base if steps is None else loops.predicted_of(base, classes, steps, numbers)
    out, used = loops.numbers_from(predicted, symbols, tiles.raw, tiles.starts, numbers, table.far)
    need(np.array_equal(used, tiles.bits), "raw bits do not end where they should", expected=tiles.bits.tolist(), found=used.tolist())
    _check_unused(tiles)
    return out


def _check_unused(tiles: Tiles) -> None:
    """Require that bits after the last one of each tile are zero."""
    partial = tiles.bits % 8
    lasts = tiles.raw[np.maximum(tiles.starts + -(-tiles.bits // 8) - 1, 0)].astype(np.int64)
    need(not (lasts >> partial)[partial > 0].any(), "unused bits of the raw bits are set")
