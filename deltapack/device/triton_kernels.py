"""The loops over tiles as one Triton kernel: undo, decode, add and round in a single pass; same bits as `deltapack.kernels.reference`.

One launch covers the tiles of many tensors: a program takes a tile, and all that it needs to know stands in tables of int64 (`TASKS` and
`TERMS` of `deltapack.device.tables`, made for a launch, and `ROWS` of `deltapack.device.resident`, which came with the pack), with
addresses and offsets of 64 bits. A tile's positions are a running sum over gaps, be they sampled, stored or the bits of a bitmap: a block
of gaps is turned into positions by a parallel prefix sum, block after block until the tile ends. A single term is added in place where it
keeps elements. The sum of several is collected in f32 in a scratch window, and added when all terms have passed it; windows are so small
that those of all programs stay in the L2 cache, and a term goes on in the next window from the block that crosses the border. Rounding is
integer arithmetic and no multiplication is fused with an addition.

With `TRITON_INTERPRET=1` in the environment the same code runs on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from deltapack.device.ready import KINDS
from deltapack.device.triton_decoding import bounds_of, in_matrix, items_of, places_of
from deltapack.device.triton_rounding import add_rounded, element_pointer, pointer
from deltapack.device.triton_values import values_of
from deltapack.kernels.layout import TILE

__all__ = ["BLOCK", "PROGRAMS", "STATE", "WINDOW", "options", "switch_tiles"]

BLOCK = 256
WARPS = 2
WINDOW = 4096
PROGRAMS = 8
"""Programs for each processor that collect sums, as many as run at a time with 128 registers a thread. Together their windows take 17 MB on
an H100; with twice that they no longer stay in its L2 cache, and all takes twice as long."""
STATE = 3
"""Numbers of where a term goes on: item, position and number of kept elements."""


def options(*, kinds: int, values: int, scales: int, heavy: bool) -> dict[str, Any]:
    """Return how the kernel is compiled.

    The registers of a thread are bounded, because ptxas left alone takes more than let enough programs run at a time.

    Args:
        kinds: `KINDS` of the kernel.
        values: `VALUES` of the kernel.
        scales: `SCALES` of the kernel.
        heavy: Whether f64 occurs, or sums of several terms become another type.
    """
    if max(kinds.bit_count(), values.bit_count(), scales.bit_count()) <= 1:
        registers = 168 if heavy else 128
    else:
        registers = 168 if kinds.bit_count() <= 2 and not heavy else 255
    return {"num_warps": WARPS, "enable_fp_fusion": False, "maxnreg": registers}


_UNDO, _APPLY, _COLLECT = (tl.constexpr(mode) for mode in range(3))
_TILE = tl.constexpr(TILE)
_STATE = tl.constexpr(STATE)
_SEEDED, _STRATIFIED = tl.constexpr(KINDS["seeded"]), tl.constexpr(KINDS["stratified"])
_UNTOUCHED = tl.constexpr(-1)
"""Scratch where no term kept an element: a NaN that arithmetic on finite numbers does not give."""


@triton.jit
def _walk(
    term, task, tile, length, start, stop, at, cursor, rank, scratch,
    MODE: tl.constexpr, LOG: tl.constexpr, SOURCE: tl.constexpr, TARGET: tl.constexpr, KINDS: tl.constexpr, VALUES: tl.constexpr,
    SCALES: tl.constexpr, DROPS: tl.constexpr, SLICED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Visit the elements of [start, stop) that a term keeps in a tile.

    Begins at item `at`, at element `cursor`, after `rank` kept elements; returns where to go on.
    """
    row = pointer(tl.load(term + 5), tl.int64) + tile * 8
    kind, count, items = tl.load(row).to(tl.int32), tl.load(row + 1).to(tl.int32), tl.load(row + 2).to(tl.int32)
    codes, first, scales = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    values, bits, scaling = tl.load(term).to(tl.int32), tl.load(term + 1).to(tl.int32), tl.load(term + 9).to(tl.int32)
    # A mask that is drawn has no stream, but thresholds, or strata.
    index = tl.load(tl.where((kind == _SEEDED) | (kind == _STRATIFIED), term + 4, row + 3))
    low, high = tl.load(term + 2).to(tl.uint32), tl.load(term + 3).to(tl.uint32)
    factor = tl.load(term + 6).to(tl.int32).to(tl.float32, bitcast=True)
    log, before = tl.load(term + 7), tl.load(row + 7)
    target, source, bounds = tl.load(task), tl.load(task + 1), bounds_of(task)
    width, corner = tile, (tile, tile)
    if DROPS or (SCALES & 12) or (VALUES & 64):
        width = tl.load(term + 8)
        above = tile * _TILE // width
        corner = (above, tile * _TILE - above * width)
    given = (kind, items, index, low, high)
    going = (at < items) & (cursor < stop)
    while going:
        position, order, kept, moved, found = items_of(
            term, given, tile, at, cursor, rank, length, corner, width, scaling, KINDS, DROPS, BLOCK)  # fmt: skip
        place, inside = places_of(bounds, tile, position, SLICED)
        mask = kept & inside & (order < count)
        if MODE == _COLLECT:
            mask = mask & (position >= start) & (position < stop)
        if MODE == _UNDO:
            old = tl.load(element_pointer(log, TARGET) + (before + order), mask=mask)
            tl.store(element_pointer(target, TARGET) + place, old, mask=mask)
        else:
            line = (position, position)
            if (SCALES & 12) or (VALUES & 64):
                line = in_matrix(corner, width, position)
            value, there = values_of(
                term, values, bits, scaling, codes, first, scales, order, line[0], line[1], mask, factor, VALUES, SCALES)  # fmt: skip
            if LOG:
                raw = tl.load(element_pointer(source, SOURCE) + place, mask=mask)
                tl.store(element_pointer(log, SOURCE) + (before + order), raw, mask=mask & (log != 0))
            elif MODE == _APPLY:
                raw = tl.load(element_pointer(source, SOURCE) + place, mask=there)
            if MODE == _APPLY:
                result = add_rounded(raw, 0.0 + value, SOURCE, TARGET)
                tl.store(element_pointer(target, TARGET) + place, result, mask=there)
            else:
                so_far = tl.load(scratch + (position - start), mask=there, other=0)
                total = tl.where(so_far == _UNTOUCHED, 0.0, so_far.to(tl.float32, bitcast=True)) + value
                tl.store(scratch + (position - start), total.to(tl.int32, bitcast=True), mask=there)
        # A block that crosses the border of a window is visited again from the next one.
        passed = (cursor + moved <= stop) | (stop == length)
        cursor += tl.where(passed, moved, 0)
        rank += tl.where(passed, found, 0)
        at += tl.where(passed, BLOCK, 0)
        going = passed & (at < items) & (cursor < stop)
    return at, cursor, rank


@triton.jit
def _kept(term, tile):
    """Return how many elements a term keeps in a tile."""
    return tl.load(pointer(tl.load(term + 5), tl.int64) + tile * 8 + 1).to(tl.int32)


@triton.jit
def _sum(
    terms, part, end, task, tile, length, scratch, state,
    LOG: tl.constexpr, SOURCE: tl.constexpr, TARGET: tl.constexpr, KINDS: tl.constexpr, VALUES: tl.constexpr,
    SCALES: tl.constexpr, DROPS: tl.constexpr, SLICED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Add several terms to a tile; return whether each keeps as many elements as its table says."""
    good = part == part
    for window in tl.range(0, tl.cdiv(length, WINDOW)):
        start = window * WINDOW
        stop = tl.minimum(start + WINDOW, length)
        number = part
        while number < end:
            own = state + (number - part) * _STATE
            at, cursor, rank = start, start, start
            if start > 0:
                at, cursor, rank = tl.load(own), tl.load(own + 1), tl.load(own + 2)
            term = terms + number * 16
            at, cursor, rank = _walk(
                term, task, tile, length, start, stop, at, cursor, rank, scratch,
                _COLLECT, LOG, SOURCE, TARGET, KINDS, VALUES, SCALES, DROPS, SLICED, BLOCK,
            )  # fmt: skip
            # All of the program's threads have read the state before one of them replaces it.
            tl.debug_barrier()
            tl.store(own, at)
            tl.store(own + 1, cursor)
            tl.store(own + 2, rank)
            good &= (stop < length) | (rank == _kept(term, tile))
            number += 1
        tl.debug_barrier()
        _add_collected(task, tile, start, stop, scratch, SOURCE, TARGET, SLICED, ALIGNED, BLOCK, WINDOW)
        tl.debug_barrier()
    return good


@triton.jit
def _taken(places):
    """Return what the scratch window holds, and clear it; the thread that clears an element need not be the one that reads it."""
    total = tl.load(places)
    tl.debug_barrier()
    tl.store(places, tl.full(places.shape, _UNTOUCHED, tl.int32))
    return total


@triton.jit
def _add_collected(
    task, tile, start, stop, scratch,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, SLICED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Add what the scratch window holds of the elements [start, stop) of a tile, and clear it."""
    target, source, bounds = tl.load(task), tl.load(task + 1), bounds_of(task)
    left, right = bounds[2][0], bounds[2][1]
    first = tile * _TILE + start
    whole = (first >= left) & (first + WINDOW <= right) & (stop == start + WINDOW)
    # More elements at once than are decoded at once: their loads have nothing to wait for.
    ADDED: tl.constexpr = min(WINDOW, 2 * BLOCK)
    for at in tl.range(0, WINDOW, ADDED):
        offset = at + tl.arange(0, ADDED)
        place, inside = places_of(bounds, tile, start + offset, SLICED)
        into, of = element_pointer(target, TARGET) + place, element_pointer(source, SOURCE) + place
        if ALIGNED and not SLICED:
            into, of = tl.multiple_of(into, 16), tl.multiple_of(of, 16)
        if whole and not SLICED:
            # Without a mask, 16 bytes are moved at once; what no term keeps gets the bits that it has.
            raw = tl.load(of)
            total = _taken(scratch + offset)
            touched = total != _UNTOUCHED
            result = add_rounded(raw, total.to(tl.float32, bitcast=True), SOURCE, TARGET)
            if SOURCE == TARGET:
                tl.store(into, tl.where(touched, result, raw))
            else:
                tl.store(into, result, mask=touched)
        else:
            total = _taken(scratch + offset)
            mask = inside & (total != _UNTOUCHED)
            raw = tl.load(of, mask=mask)
            result = add_rounded(raw, total.to(tl.float32, bitcast=True), SOURCE, TARGET)
            tl.store(into, result, mask=mask)


@triton.jit(do_not_specialize=["count", "most"])
def switch_tiles(
    tasks, terms, owners, scratch, states, violation, count, most,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, KINDS: tl.constexpr, VALUES: tl.constexpr, SCALES: tl.constexpr, DROPS: tl.constexpr,
    UNDO: tl.constexpr, LOG: tl.constexpr, COLLECT: tl.constexpr, SLICED: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Undo what was added to tiles and add something else, each tile once.

    Args:
        tasks: `[tasks, 16] int64`, see `deltapack.device.tables.TASKS`.
        terms: `[terms, 16] int64`, see `deltapack.device.tables.TERMS`.
        owners: `[count] int64`, the task of each tile.
        scratch: `[programs, WINDOW] int32`, all -1; where `COLLECT`.
        states: `[programs, most, 3] int32`; where `COLLECT`.
        violation: `[1] int64`; becomes the number of the first tile where a term keeps another number of elements than its table says.
        count: Number of tiles.
        most: The most terms that are added to a tile.
        SOURCE: Type of the base, of `deltapack.device.triton_rounding.DTYPES`.
        TARGET: Type of the result.
        KINDS: Bit i is set where `deltapack.device.ready.KINDS` number i occurs.
        VALUES: Bit i is set where `deltapack.device.tables.VALUES` number i occurs.
        SCALES: Bit i is set where `deltapack.device.tables.SCALINGS` number i occurs.
        DROPS: Whether any term drops rows.
        UNDO: Whether any tile has something to undo.
        LOG: Whether replaced elements are logged.
        COLLECT: Whether any tile adds more than one term.
        SLICED: Whether any region is more than a range of consecutive elements.
        ALIGNED: Whether all regions start at multiples of 16 bytes.
        BLOCK: Gaps that are decoded at once; divides `WINDOW`.
        WINDOW: Elements whose sums are collected at once.
    """
    number = tl.program_id(0).to(tl.int64)
    own, state = scratch + number * WINDOW, states + number * most * _STATE
    while number < count:
        task = tasks + tl.load(owners + number) * 16
        tile = tl.load(task + 9) + number - tl.load(task + 11)
        length = tl.minimum(tl.load(task + 10) - tile * _TILE, _TILE).to(tl.int32)
        zero = tl.zeros([], tl.int32)
        if UNDO:
            part, end = tl.load(task + 14), tl.load(task + 15)
            while part < end:
                _walk(
                    terms + part * 16, task, tile, length, zero, length, zero, zero, zero, own,
                    _UNDO, False, SOURCE, TARGET, KINDS, VALUES, SCALES, DROPS, SLICED, BLOCK,
                )  # fmt: skip
                part += 1
            tl.debug_barrier()
        part, end = tl.load(task + 12), tl.load(task + 13)
        good = part == part
        if COLLECT:
            if end - part > 1:
                good &= _sum(
                    terms, part, end, task, tile, length, own, state,
                    LOG, SOURCE, TARGET, KINDS, VALUES, SCALES, DROPS, SLICED, ALIGNED, BLOCK, WINDOW,
                )  # fmt: skip
                part = end
        while part < end:
            term = terms + part * 16
            _, _, rank = _walk(
                term, task, tile, length, zero, length, zero, zero, zero, own,
                _APPLY, LOG, SOURCE, TARGET, KINDS, VALUES, SCALES, DROPS, SLICED, BLOCK,
            )  # fmt: skip
            good &= rank == _kept(term, tile)
            part += 1
        if not good:
            tl.atomic_min(violation, number)
        number += tl.num_programs(0)
