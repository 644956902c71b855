"""The loops over tiles as one Triton kernel: undo, decode, add and round in a single pass; same bits as `deltapack.kernels.reference`.

One launch covers the tiles of many tensors: a program takes a tile, and all that it needs to know stands in four tables of int64
(`REGIONS`, `TILES`, `PARTS`, `TERMS`), with addresses and offsets of 64 bits. A tile's positions are a running sum over gaps, be they
sampled, stored or the bits of a bitmap: a block of gaps is turned into positions by a parallel prefix sum, block after block until the tile
ends. A single term is added in place where it keeps elements; the sum of several is collected in f32 in a scratch tile (which stays in the
L2 cache) and added at the end. Rounding is integer arithmetic and no multiplication is fused with an addition.

With `TRITON_INTERPRET=1` in the environment the same code runs on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from deltapack.device.triton_rounding import add_rounded, element_pointer, pointer
from deltapack.kernels.layout import GROUP, TILE

__all__ = ["BLOCK", "PARTS", "REGIONS", "TERMS", "TILES", "VALUES", "options", "switch_tiles"]

BLOCK = 1024
WARPS = 4
REGIONS = ("target", "source", "width", "top", "bottom", "left", "right", "row stride", "column stride")
"""Columns of the table of regions. `target` and `source` are the addresses that the pack's first element would have in the live tensor, and
in the one that the sum is added to. The pack's tensor has rows of `width` elements; the region is rows [top, bottom) and columns
[left, right) of it, and strides count elements."""
TILES = ("region", "tile", "length", "apply", "apply end", "undo", "undo end")
"""Columns of the table of tiles: the region, the tile's number in the pack's tensor, its length, and ranges of parts."""
PARTS = ("term", "kind", "count", "items", "index", "codes", "first", "scales", "log")
"""Columns of the table of parts, the terms of tiles: see `deltapack.device.ready.COLUMNS`, with addresses in place of offsets. `log` is
the address of the replaced elements, in the order of the kept ones; 0 where there is none."""
TERMS = ("values", "bits", "key low", "key high", "thresholds", "factor")
"""Columns of the table of terms: how codes are read, bits of a code, the mask key, the address of the gap table, the bits of the factor."""
VALUES = {"int": 0, "sign": 1, "f32": 2, "bf16": 3, "f16": 4}
"""Ways to read a code, `deltapack.format.codecs.ValueCodec.form`, as the kernel knows them."""


def options(*, alike: bool, heavy: bool) -> dict[str, Any]:
    """Return how the kernel is compiled.

    The registers of a thread are bounded, because ptxas left alone goes for more programs at a time and spills for it.

    Args:
        alike: Whether all terms have the same codecs, so that the code of one only is compiled.
        heavy: Whether sums of several terms or f64 occur.
    """
    registers = (168 if heavy else 128) if alike else 255
    return {"num_warps": WARPS, "enable_fp_fusion": False, "maxnreg": registers}


_UNDO, _APPLY, _COLLECT = (tl.constexpr(mode) for mode in range(3))
_SEEDED, _GAPS, _WIDE, _BITMAP = (tl.constexpr(kind) for kind in range(4))
_TILE = tl.constexpr(TILE)
_GROUP = tl.constexpr(GROUP)
_UNTOUCHED = tl.constexpr(-1)
"""Scratch where no term kept an element: a NaN that arithmetic on finite numbers does not give."""
_INT, _SIGN, _V32, _VBF16, _VF16 = (tl.constexpr(form) for form in VALUES.values())


@triton.jit
def _gaps_of(samples, thresholds):
    """Return how many of the 255 thresholds are below each sample, by bisection."""
    gap = tl.zeros_like(samples).to(tl.int32)
    for level in tl.static_range(8):
        half = 128 >> level
        gap += tl.where(tl.load(thresholds + (gap + half - 1)) < samples, half, 0)
    return gap


@triton.jit
def _steps(kind, at, items, index, tile, low, high, thresholds, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """Return by how much each of the items [at, at + BLOCK) moves the cursor, and whether it keeps an element."""
    item = at + tl.arange(0, BLOCK)
    there = item < items
    step = tl.where(there, 1, 0)
    kept = there
    if KINDS & 1:
        if kind == _SEEDED:
            block = (at // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
            none = tl.zeros_like(block)
            k0 = none + low
            k1 = none + high
            a, b, c, d = tl.philox_impl(block, none + tile.to(tl.uint32), none, none, k0, k1, 10)
            samples = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK])
            gap = _gaps_of(samples, pointer(thresholds, tl.uint32))
            kept = gap < 255
            step = gap + kept.to(tl.int32)
    if KINDS & 2:
        if kind == _GAPS:
            gap = tl.load(pointer(index, tl.uint8) + item, mask=there, other=255).to(tl.int32)
            kept = gap < 255
            step = tl.where(there, gap + kept.to(tl.int32), 0)
    if KINDS & 4:
        if kind == _WIDE:
            gap = tl.load(pointer(index, tl.uint16) + item, mask=there, other=0).to(tl.int32)
            step = tl.where(there, gap + 1, 0)
    if KINDS & 8:
        if kind == _BITMAP:
            byte = tl.load(pointer(index, tl.uint8) + item // 8, mask=there, other=0).to(tl.int32)
            kept = ((byte >> (item & 7)) & 1) == 1
    return step, kept


@triton.jit
def _values(values, bits, codes, first, scales, order, mask, factor, VALUES: tl.constexpr):
    """Return the values of kept elements: code times scale times factor (spec/06-arithmetic.md section 6.1)."""
    at = first + order.to(tl.int64)
    value = tl.zeros(order.shape, tl.float32)
    if VALUES & 3:
        if values <= _SIGN:
            place = at * bits
            byte = tl.load(pointer(codes, tl.uint8) + (place >> 3), mask=mask, other=0).to(tl.int32)
            field = (byte >> (place & 7).to(tl.int32)) & ((1 << bits) - 1)
            half = 1 << (bits - 1)
            code = tl.where(values == _SIGN, 1 - 2 * field, (field ^ half) - half)
            scale = tl.load(pointer(scales, tl.uint16) + order // _GROUP, mask=mask, other=0).to(tl.uint32) << 16
            value = code.to(tl.float32) * (scale.to(tl.float32, bitcast=True) * factor)
    if VALUES & 4:
        if values == _V32:
            value = tl.load(pointer(codes, tl.float32) + at, mask=mask, other=0.0) * factor
    if VALUES & 8:
        if values == _VBF16:
            wide = tl.load(pointer(codes, tl.uint16) + at, mask=mask, other=0).to(tl.uint32) << 16
            value = wide.to(tl.float32, bitcast=True) * factor
    if VALUES & 16:
        if values == _VF16:
            value = tl.load(pointer(codes, tl.float16) + at, mask=mask, other=0.0).to(tl.float32) * factor
    return value


@triton.jit
def _bounds(region):
    """Return what `_places` needs to know of a region."""
    rows = (tl.load(region + 3), tl.load(region + 4), tl.load(region + 7))
    columns = (tl.load(region + 5), tl.load(region + 6), tl.load(region + 8))
    return tl.load(region + 2), rows, columns


@triton.jit
def _places(bounds, tile, position, SLICED: tl.constexpr):
    """Return where elements of a tile lie in a region, counted in elements, and whether they lie in it."""
    width, rows, columns = bounds
    element = tile * _TILE + position.to(tl.int64)
    if SLICED:
        row = element // width
        column = element - row * width
        inside = (row >= rows[0]) & (row < rows[1]) & (column >= columns[0]) & (column < columns[1])
        return row * rows[2] + column * columns[2], inside
    else:
        return element, (element >= columns[0]) & (element < columns[1])


@triton.jit
def _walk(
    part, terms, region, tile, length, scratch,
    MODE: tl.constexpr, LOG: tl.constexpr, SOURCE: tl.constexpr, TARGET: tl.constexpr,
    KINDS: tl.constexpr, VALUES: tl.constexpr, SLICED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Visit the kept elements of one term in one tile; return whether there were as many as the table says."""
    term = terms + tl.load(part) * 6
    kind, count, items = tl.load(part + 1).to(tl.int32), tl.load(part + 2).to(tl.int32), tl.load(part + 3).to(tl.int32)
    index = tl.load(part + 4)
    codes, first, scales, log = tl.load(part + 5), tl.load(part + 6), tl.load(part + 7), tl.load(part + 8)
    values, bits, thresholds = tl.load(term).to(tl.int32), tl.load(term + 1).to(tl.int32), tl.load(term + 4)
    low, high = tl.load(term + 2).to(tl.uint32), tl.load(term + 3).to(tl.uint32)
    factor = tl.load(term + 5).to(tl.int32).to(tl.float32, bitcast=True)
    target, source, bounds = tl.load(region), tl.load(region + 1), _bounds(region)
    cursor = tl.zeros([], tl.int32)
    rank = tl.zeros([], tl.int32)
    at = tl.zeros([], tl.int32)
    while (at < items) & (cursor < length):
        step, kept = _steps(kind, at, items, index, tile, low, high, thresholds, KINDS, BLOCK)
        position = cursor + tl.cumsum(step, 0) - 1
        kept = kept & (position < length)
        order = rank + tl.cumsum(kept.to(tl.int32), 0) - 1
        place, inside = _places(bounds, tile, position, SLICED)
        mask = kept & inside & (order < count)
        if MODE == _UNDO:
            old = tl.load(element_pointer(log, TARGET) + order, mask=mask)
            tl.store(element_pointer(target, TARGET) + place, old, mask=mask)
        else:
            value = _values(values, bits, codes, first, scales, order, mask, factor, VALUES)
            if LOG or MODE == _APPLY:
                raw = tl.load(element_pointer(source, SOURCE) + place, mask=mask)
            if LOG:
                tl.store(element_pointer(log, SOURCE) + order, raw, mask=mask & (log != 0))
            if MODE == _APPLY:
                result = add_rounded(raw, 0.0 + value, SOURCE, TARGET)
                tl.store(element_pointer(target, TARGET) + place, result, mask=mask)
            else:
                so_far = tl.load(scratch + position, mask=mask, other=0)
                total = tl.where(so_far == _UNTOUCHED, 0.0, so_far.to(tl.float32, bitcast=True)) + value
                tl.store(scratch + position, total.to(tl.int32, bitcast=True), mask=mask)
        cursor += tl.sum(step, 0)
        rank += tl.sum(kept.to(tl.int32), 0)
        at += BLOCK
    return rank == count


@triton.jit
def _add_collected(
    region, tile, length, scratch,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, SLICED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add what the scratch tile holds, and clear it."""
    source, target, bounds = tl.load(region + 1), tl.load(region), _bounds(region)
    if ALIGNED:
        source, target = tl.multiple_of(source, 16), tl.multiple_of(target, 16)
    for start in tl.range(0, length, BLOCK):
        position = start + tl.arange(0, BLOCK)
        total = tl.load(scratch + position)
        touched = total != _UNTOUCHED
        place, inside = _places(bounds, tile, position, SLICED)
        mask = touched & inside
        raw = tl.load(element_pointer(source, SOURCE) + place, mask=inside & (position < length))
        result = add_rounded(raw, total.to(tl.float32, bitcast=True), SOURCE, TARGET)
        tl.store(element_pointer(target, TARGET) + place, result, mask=mask)
        tl.store(scratch + position, tl.full([BLOCK], _UNTOUCHED, tl.int32))


@triton.jit(do_not_specialize=["count"])
def switch_tiles(
    regions, tiles, parts, terms, scratch, violation, count,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, KINDS: tl.constexpr, VALUES: tl.constexpr, UNDO: tl.constexpr, LOG: tl.constexpr,
    COLLECT: tl.constexpr, SLICED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Undo what was added to tiles and add something else, each tile once.

    Args:
        regions: `[regions, 9] int64`, see `REGIONS`.
        tiles: `[count, 7] int64`, see `TILES`.
        parts: `[parts, 9] int64`, see `PARTS`.
        terms: `[terms, 6] int64`, see `TERMS`.
        scratch: `[programs, 65536] int32`, all -1; where `COLLECT`.
        violation: `[1] int64`; becomes the number of the first tile where a term keeps another number of elements than its table says.
        count: Number of tiles.
        SOURCE: Type of the base, of `deltapack.device.triton_rounding.DTYPES`.
        TARGET: Type of the result.
        KINDS: Bit i is set where `deltapack.device.ready.KINDS` number i occurs.
        VALUES: Bit i is set where `VALUES` number i occurs.
        UNDO: Whether any tile has something to undo.
        LOG: Whether replaced elements are logged.
        COLLECT: Whether any tile adds more than one term.
        SLICED: Whether any region is more than a range of consecutive elements.
        ALIGNED: Whether all regions start at multiples of 16 bytes.
        BLOCK: Gaps that are decoded at once.
    """
    number = tl.program_id(0).to(tl.int64)
    own = scratch + number * _TILE
    while number < count:
        row = tiles + number * 7
        region, tile, length = regions + tl.load(row) * 9, tl.load(row + 1), tl.load(row + 2).to(tl.int32)
        if UNDO:
            part, stop = tl.load(row + 5), tl.load(row + 6)
            while part < stop:
                _walk(parts + part * 9, terms, region, tile, length, own, _UNDO, False, SOURCE, TARGET, KINDS, VALUES, SLICED, BLOCK)
                part += 1
            tl.debug_barrier()
        part, stop = tl.load(row + 3), tl.load(row + 4)
        good = part == part
        if COLLECT:
            if stop - part > 1:
                while part < stop:
                    good &= _walk(
                        parts + part * 9, terms, region, tile, length, own, _COLLECT, LOG, SOURCE, TARGET, KINDS, VALUES, SLICED, BLOCK
                    )  # fmt: skip
                    tl.debug_barrier()
                    part += 1
                _add_collected(region, tile, length, own, SOURCE, TARGET, SLICED, ALIGNED, BLOCK)
                tl.debug_barrier()
        while part < stop:
            good &= _walk(parts + part * 9, terms, region, tile, length, own, _APPLY, LOG, SOURCE, TARGET, KINDS, VALUES, SLICED, BLOCK)
            part += 1
        if not good:
            tl.atomic_min(violation, number)
        number += tl.num_programs(0)
