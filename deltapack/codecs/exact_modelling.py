"""What the differences of a chunk are coded with: classes, staircases, far symbols, contexts, frequencies (spec/codecs/exact.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import varint, write_stream
from deltapack.codecs.exact_coding import lanes_for
from deltapack.codecs.exact_table import LANES, MOST_RANGES, Table, write_table
from deltapack.codecs.exact_tables import SharedTables
from deltapack.kernels.exact_numbers import Numbers, symbol_table
from deltapack.kernels.layout import BIT, EXACT_BLOCK, TILE, Bits, Bytes
from deltapack.kernels.reference.exact_model import LOGARITHMS

__all__ = ["Plan", "Symbols", "plan_values", "symbols_between"]

_LEAST_FOR_CLASSES = 4096
"""Chunks of fewer numbers have neither classes nor staircases: nothing is won on them."""
_GLANCE, _EVERY = 128, 16
"""Staircases are looked for in every 128th block of a class, and where there may be some, in every 16th."""
_LEAST_HITS, _LEAST_GAIN = 0.3, 0.02
"""A staircase is used where it tells so many numbers exactly, and so many more than taking them as they are."""
_FLIPS = 256
"""Far symbols are used where more than a 256th of the signs change."""


@dataclass(frozen=True)
class Symbols:
    """Numbers of base and fine-tune, `[n]` each, with the symbols of their differences.

    Attributes:
        base: Numbers of the base.
        tuned: Numbers of the fine-tune.
        symbols: Without staircases and far symbols, `[n] uint8`.
        changed: How many are not 0.
    """

    base: Bits
    tuned: Bits
    symbols: Bytes
    changed: int

    def at(self, places: NDArray[np.intp]) -> Symbols:
        """Return some of the numbers, all of which changed."""
        return Symbols(self.base[places], self.tuned[places], self.symbols[places], len(places))


@dataclass(frozen=True)
class Plan:
    """How numbers are coded.

    Attributes:
        base: That contexts follow from, `[n]`.
        predicted: That differences are taken from, `[n]`.
        symbols: Of the differences, `[n] uint8`.
        classes: Of each block.
        table: With lanes that suit them.
        head: What says the table and the classes.
        bits: About what all takes, with the head.
        is_shared: Whether the table is a shared one.
    """

    base: Bits
    predicted: Bits
    symbols: Bytes
    classes: Bytes
    table: Table
    head: bytes
    bits: float
    is_shared: bool = False


def symbols_between(base: Bits, tuned: Bits, numbers: Numbers) -> Symbols:
    """Return numbers with the symbols of their differences."""
    symbols = kernels.active().symbols_of(base, tuned, numbers, -1)
    return Symbols(base, tuned, symbols, int(np.count_nonzero(symbols)))


def plan_values(values: Symbols, numbers: Numbers, tables: SharedTables) -> Plan:
    """Plan how to code at least one number: with a table of its own, or with a shared one where that takes less."""
    loops, base = kernels.active(), values.base
    classes = np.zeros(-(-len(base) // EXACT_BLOCK), np.uint8)
    predicted, symbols = base, values.symbols
    stairs: list[NDArray[np.uint64] | None] = [None]
    if len(base) >= _LEAST_FOR_CLASSES:
        classes = _classes_of(loops.block_sums(symbols), numbers)
        stairs = [_find_stairs(values, classes, kind, numbers) for kind in range(int(classes.max()) + 1)]
        if any(own is not None for own in stairs):
            steps = np.array([np.zeros(64, np.uint64) if own is None else own for own in stairs])
            predicted = loops.predicted_of(base, classes, steps, numbers)
            symbols = loops.symbols_of(predicted, values.tuned, numbers, -1)
    far = _far_exponent(predicted, values.tuned, symbols, numbers)
    if far >= 0:
        symbols = loops.far_symbols_of(predicted, values.tuned, symbols, numbers, far)
    found = _count(base, symbols, classes, stairs, numbers)
    shared = None
    if tables.are_some:
        whole = found.whole
        if predicted is not base or far >= 0:
            whole = loops.count_symbols(base, np.zeros_like(classes), values.symbols, numbers, 1)[1][0]
        shared = _plan_shared(values, found.first, whole, numbers, tables)
    if shared is not None and shared.bits <= found.bits + _raw_bits(found.whole, numbers, far):
        return shared
    own = _plan_own(found, far, numbers, len(base))
    plan = Plan(base, predicted, symbols, found.classes, own[0], own[1], own[2] + _raw_bits(found.whole, numbers, far))
    return plan if shared is None or plan.bits < shared.bits else shared


def _plan_shared(values: Symbols, first: int, counts: NDArray[np.int64], numbers: Numbers, tables: SharedTables) -> Plan | None:
    found = tables.cheapest(first, counts, numbers)
    if found is None:
        return None
    number, bits = found[0], found[1] / BIT
    lanes = lanes_for(bits, len(values.base))
    head = varint(number * len(LANES) + LANES.index(lanes))
    whole = bits + _raw_bits(counts, numbers, -1) + 8 * len(head) + _overhead(lanes, len(values.base))
    one_class = np.zeros(-(-len(values.base) // EXACT_BLOCK), np.uint8)
    table = tables.table(number, numbers).with_lanes(lanes)
    return Plan(values.base, values.base, values.symbols, one_class, table, head, whole, is_shared=True)


def _plan_own(found: _Counted, far: int, numbers: Numbers, length: int) -> tuple[Table, bytes, float]:
    """Return a table with its bytes, and what it and the symbols take."""
    contexts = sum(map(len, found.starts))
    precision = 12 if found.bits < 0.5 * length else 11 if contexts <= 8 else 10
    frequencies = np.array([kernels.active().frequencies_of(row, precision) for row in found.rows])
    table = Table(precision, 4, far, found.starts, found.stairs, frequencies)
    bits = float((table.costs[:, : found.rows.shape[1]] * found.rows).sum()) / BIT
    table = table.with_lanes(lanes_for(bits, length))
    head = write_stream(write_table(table, numbers)) + (write_stream(found.classes.tobytes()) if table.kinds == 2 else b"")
    return table, head, bits + 8 * len(head) + _overhead(table.lanes, length)


def _overhead(lanes: int, length: int) -> int:
    """Return about how many bits tiles take beside symbols and raw bits: three of the four bytes of each state, and lengths."""
    return 8 * (3 * lanes + 2) * -(-length // TILE)


def _raw_bits(counts: NDArray[np.int64], numbers: Numbers, far: int) -> int:
    widths = symbol_table(numbers, far).widths[: counts.shape[1]]
    return int(counts.sum(axis=0) @ widths.astype(np.int64)) if widths.any() else 0


def _classes_of(sums: NDArray[np.uint32], numbers: Numbers) -> Bytes:
    """Divide blocks into two classes where the sums of their symbols fall into two heaps (Otsu's threshold), `[blocks] uint8`."""
    if numbers.width >= 32:  # a symbol is about twice a logarithm already
        levels, apart = sums.astype(np.int64) >> 5, 32
    else:
        shifted = sums.astype(np.int64) + 16
        exponents = np.frexp(shifted.astype(np.float64))[1].astype(np.int64) - 1
        levels, apart = ((exponents << 16) + LOGARITHMS[(shifted << 12 >> exponents) & 4095]) >> 12, 20
    least = int(levels.min())
    if levels.max() - least <= apart:
        return np.zeros(len(sums), np.uint8)
    counts = np.bincount(levels - least).astype(np.float64)  # its first and last are not 0, so there is something on both sides
    below, weighted = np.cumsum(counts)[:-1], np.cumsum(counts * np.arange(len(counts)))
    low, high = weighted[:-1] / below, (weighted[-1] - weighted[:-1]) / (len(sums) - below)
    best = int(np.argmax(below * (len(sums) - below) * (high - low) ** 2))
    return (levels > best + least if high[best] - low[best] > apart else np.zeros(len(sums))).astype(np.uint8)


def _find_stairs(values: Symbols, classes: Bytes, kind: int, numbers: Numbers) -> NDArray[np.uint64] | None:
    """Return the steps of a class, or none where they tell too little."""
    if numbers.stairs < 0 or values.changed < _LEAST_GAIN * len(values.base):
        return None
    for every in (_GLANCE, _EVERY):
        candidates, hits, same, total = kernels.active().stairs_of(values.base, values.tuned, classes, kind, every, numbers)
        if not (hits > _LEAST_HITS * total and hits - same > _LEAST_GAIN * total):
            return None
    return candidates


def _far_exponent(predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers) -> int:
    """Return the least exponent that gets a far symbol, or -1; signs are looked at where there are differences as large as they make."""
    large = 2 * ((numbers.width - 2 - numbers.head << numbers.head) + (1 << numbers.head)) - 1  # of 2^(width - 2) and more
    if not numbers.far or np.count_nonzero(symbols >= large) * _FLIPS <= len(symbols):
        return -1
    flips, largest = kernels.active().flips_of(predicted, tuned, numbers)
    return max(0, largest - 127) if flips * _FLIPS > len(symbols) else -1


@dataclass(frozen=True)
class _Counted:
    """Symbols by context: classes, where their ranges start, staircases; counts by context, and by context byte from the first on."""

    classes: Bytes
    starts: tuple[tuple[int, ...], ...]
    stairs: tuple[NDArray[np.uint64] | None, ...]
    rows: NDArray[np.int64]
    first: int
    whole: NDArray[np.int64]
    bits: float


def _count(base: Bits, symbols: Bytes, classes: Bytes, stairs: list[NDArray[np.uint64] | None], numbers: Numbers) -> _Counted:
    """Choose contexts for each class, and leave classes away that do not pay; `bits` are about those of symbols, table and classes."""
    loops, kinds = kernels.active(), len(stairs)
    first, counts = loops.count_symbols(base, classes, symbols, numbers, kinds)
    whole: NDArray[np.int64] = counts[0] if kinds == 1 else counts.sum(axis=0)
    found, class_bits = [loops.context_ranges(own, MOST_RANGES) for own in counts], 0
    if kinds == 2:
        class_bits = 8 * len(write_stream(classes.tobytes()))
        if all(own is None for own in stairs):
            joined = loops.context_ranges(whole, MOST_RANGES)
            if joined[1] <= sum(cost for _, cost in found) + BIT * class_bits:
                classes, counts, stairs, found, class_bits = np.zeros_like(classes), whole[None], [None], [joined], 0
    starts = tuple((0, *(int(row) + first for row in own[1:])) for own, _ in found)
    rows = np.concatenate([np.add.reduceat(own, begins, axis=0) for own, (begins, _) in zip(counts, found, strict=True)])
    return _Counted(classes, starts, tuple(stairs), rows, first, whole, sum(cost for _, cost in found) / BIT + class_bits)
