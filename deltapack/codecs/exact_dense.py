"""Numbers coded as differences from those of a base: symbols in contexts, and raw bits (spec/codecs/exact.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, write_stream
from deltapack.codecs.exact_coding import Tiles, decode_symbols, lanes_for, read_tiles, write_tiles
from deltapack.codecs.exact_table import LANES, MOST_RANGES, MOST_TABLE_BYTES, Table, read_table, write_table
from deltapack.codecs.exact_tables import SharedTables
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import BIT, EXACT_BLOCK, Bits, Bytes
from deltapack.kernels.reference.exact_model import LOGARITHMS

__all__ = ["decode_dense", "decode_shared", "encode_dense"]

_LEAST_FOR_CLASSES = 4096
"""Chunks of fewer numbers have neither classes nor staircases: nothing is won on them."""
_EVERY = 16
"""Staircases are looked for in every 16th block."""
_LEAST_HITS, _LEAST_GAIN = 0.3, 0.02
"""A staircase is used where it tells so many numbers exactly, and so many more than taking them as they are."""
_FLIPS = 256
"""Far symbols are used where more than a 256th of the signs change."""


def encode_dense(base: Bits, tuned: Bits, numbers: Numbers) -> bytes:
    """Encode at least one number, `[n]` each, as differences from those of the base."""
    loops, one_class = kernels.active(), np.zeros(-(-len(base) // EXACT_BLOCK), np.uint8)
    symbols = loops.symbols_of(base, tuned, numbers, -1)
    classes, predicted = one_class, base
    stairs: list[NDArray[np.uint64] | None] = [None]
    if len(base) >= _LEAST_FOR_CLASSES:
        classes = _classes_of(loops.block_sums(symbols), numbers)
        stairs = [_find_stairs(base, tuned, classes, kind, numbers) for kind in range(int(classes.max()) + 1)]
        if any(own is not None for own in stairs):
            steps = np.array([np.zeros(64, np.uint64) if own is None else own for own in stairs])
            predicted = loops.predicted_of(base, classes, steps, numbers)
            symbols = loops.symbols_of(predicted, tuned, numbers, -1)
    far = _far_exponent(predicted, tuned, numbers)
    if far >= 0:
        symbols = loops.symbols_of(predicted, tuned, numbers, far)
    model = _model(base, symbols, classes, stairs, numbers)
    table = Table(
        model.precision, lanes_for(model.bits, len(base)), far, model.starts, tuple(stairs[: len(model.starts)]), model.frequencies
    )
    contexts = loops.contexts_of(base, model.classes, table.maps, numbers)
    head = write_stream(write_table(table, numbers)) + (write_stream(model.classes.tobytes()) if table.kinds == 2 else b"")
    return head + write_tiles(contexts, symbols, table, loops.raw_bits_of(predicted, tuned, symbols, numbers, far))


def _classes_of(sums: NDArray[np.uint32], numbers: Numbers) -> Bytes:
    """Divide blocks into two classes where the sums of their symbols fall into two heaps (Otsu's threshold), `[blocks] uint8`."""
    if numbers.width >= 32:  # a symbol is about twice a logarithm already
        levels, apart = sums.astype(np.int64) >> 5, 32
    else:
        shifted = sums.astype(np.int64) + 16
        exponents = np.frexp(shifted.astype(np.float64))[1].astype(np.int64) - 1
        levels, apart = ((exponents << 16) + LOGARITHMS[(shifted << 12 >> exponents) & 4095]) >> 12, 20
    counts = np.bincount(levels).astype(np.float64)
    below, weighted = np.cumsum(counts)[:-1], np.cumsum(counts * np.arange(len(counts)))
    with np.errstate(all="ignore"):
        low, high = weighted[:-1] / below, (weighted[-1] - weighted[:-1]) / (len(sums) - below)
        gains = np.nan_to_num(below * (len(sums) - below) * (high - low) ** 2)
    if not len(gains) or not gains.any():
        return np.zeros(len(sums), np.uint8)
    best = int(np.argmax(gains))
    return (levels > best if high[best] - low[best] > apart else np.zeros(len(sums))).astype(np.uint8)


def _find_stairs(base: Bits, tuned: Bits, classes: Bytes, kind: int, numbers: Numbers) -> NDArray[np.uint64] | None:
    if numbers.stairs < 0:
        return None
    candidates, hits, same, total = kernels.active().stairs_of(base, tuned, classes, kind, _EVERY, numbers)
    return candidates if hits > _LEAST_HITS * total and hits - same > _LEAST_GAIN * total else None


def _far_exponent(predicted: Bits, tuned: Bits, numbers: Numbers) -> int:
    if not numbers.far:
        return -1
    flips, largest = kernels.active().flips_of(predicted, tuned, numbers)
    return max(0, largest - 127) if flips * _FLIPS > len(tuned) else -1


@dataclass(frozen=True)
class _Model:
    """What the symbols of a chunk are coded with."""

    classes: Bytes
    starts: tuple[tuple[int, ...], ...]
    frequencies: NDArray[np.int64]
    precision: int
    bits: float


def _model(base: Bits, symbols: Bytes, classes: Bytes, stairs: list[NDArray[np.uint64] | None], numbers: Numbers) -> _Model:
    """Choose contexts for each class, and leave classes away that do not pay."""
    loops, kinds = kernels.active(), len(stairs)
    counts = loops.count_symbols(base, classes, symbols, numbers, kinds)
    found = [loops.context_ranges(own, MOST_RANGES) for own in counts]
    if kinds == 2 and all(own is None for own in stairs):
        joined = loops.context_ranges(counts.sum(axis=0), MOST_RANGES)
        if joined[1] <= sum(cost for _, cost in found) + 8 * BIT * len(write_stream(classes.tobytes())):
            classes, counts, found = np.zeros_like(classes), counts.sum(axis=0, keepdims=True), [joined]
    starts = tuple(tuple(map(int, own)) for own, _ in found)
    contexts, bits = sum(map(len, starts)), sum(cost for _, cost in found) / BIT
    precision = 12 if bits < 0.5 * len(base) else 11 if contexts <= 8 else 10
    rows = [np.add.reduceat(own, first, axis=0) for own, (first, _) in zip(counts, found, strict=True)]
    frequencies = np.array([_frequencies(row, precision) for row in np.concatenate(rows)])
    return _Model(classes, starts, frequencies, precision, bits)


def _frequencies(counts: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
    return kernels.active().frequencies_of(counts, precision)


def decode_shared(cursor: Cursor, base: Bits, numbers: Numbers, tables: SharedTables) -> Bits:
    """Decode as many numbers as the base has, with a table that is not in the chunk.

    Raises:
        FormatError: What the cursor reads is damaged, or there is no such table for such numbers (rules R8 to R10).
    """
    number, lanes = divmod(cursor.number((1 << 64) - 1, "the reference to a table"), len(LANES))
    return _decode(cursor, base, numbers, replace(tables.table(number, numbers), lanes=LANES[lanes]))


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
