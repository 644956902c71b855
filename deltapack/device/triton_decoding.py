"""The elements that a block of items keeps, in Triton: same positions as of `deltapack.kernels.reference`; and where they lie."""

from __future__ import annotations

import triton
import triton.language as tl

from deltapack.device.ready import KINDS
from deltapack.device.tables import SCALINGS
from deltapack.device.triton_rounding import pointer
from deltapack.kernels.layout import TILE

__all__ = ["bounds_of", "in_matrix", "items_of", "places_of"]

_SEEDED, _GAPS, _WIDE, _BITMAP, _STRATIFIED = (
    tl.constexpr(KINDS[kind]) for kind in ("seeded", "gaps", "wide gaps", "bitmap", "stratified")
)
_ONLY_STRATIFIED = tl.constexpr(1 << KINDS["stratified"])
_ALIKE = tl.constexpr(SCALINGS["tensor"])
_TILE = tl.constexpr(TILE)


@triton.jit
def bounds_of(task):
    """Return what `places_of` needs to know of a region."""
    rows = (tl.load(task + 3), tl.load(task + 4), tl.load(task + 7))
    columns = (tl.load(task + 5), tl.load(task + 6), tl.load(task + 8))
    return tl.load(task + 2), rows, columns


@triton.jit
def places_of(bounds, tile, position, SLICED: tl.constexpr):
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
def _gaps_of(samples, thresholds):
    """Return how many of the 255 thresholds are below each sample, by bisection."""
    gap = tl.zeros_like(samples).to(tl.int32)
    for level in tl.static_range(8):
        half = 128 >> level
        gap += tl.where(tl.load(thresholds + (gap + half - 1)) < samples, half, 0)
    return gap


@triton.jit
def _strata(at, tile, step, low, high, BLOCK: tl.constexpr):
    """Return where the strata [at, at + BLOCK) begin, their widths, and which of its elements each keeps; for those that are none, any."""
    item = (at + tl.arange(0, BLOCK)).to(tl.uint32)
    coarse, fine = (step >> 16).to(tl.uint32), (step & 0xFFFF).to(tl.uint32)
    begin = item * coarse + ((item * fine) >> 16)
    width = (item + 1) * coarse + (((item + 1) * fine) >> 16) - begin
    block = (at // 8 + tl.arange(0, BLOCK // 8)).to(tl.uint32)
    none = tl.zeros_like(block)
    a, b, c, d = tl.philox_impl(block, none + tile.to(tl.uint32), none + 1, none, none + low, none + high, 7)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK // 2])
    samples = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [BLOCK])
    # At most 65,535 times 65,537, which is the largest number of 32 bits.
    return begin.to(tl.int32), width.to(tl.int32), ((samples * width) >> 16).to(tl.int32)


@triton.jit
def in_matrix(corner, width, position):
    """Return row and column of elements of a tile whose first one has the row and column `corner`."""
    column = corner[1] + position.to(tl.int64)
    # A tile has elements of two rows at most where they are as long as it is; and short rows need no division of 64 bits.
    short = tl.minimum(width, _TILE).to(tl.int32)
    below = tl.where(width < _TILE, column.to(tl.int32) // short, (column >= width).to(tl.int32)).to(tl.int64)
    return corner[0] + below, column - below * width


@triton.jit
def _is_dropped(term, scaling, row, mask):
    """Return whether elements lie in rows that their term drops."""
    of_lines = scaling > _ALIKE
    return of_lines & (tl.load(pointer(tl.load(term + 11), tl.float32) + row, mask=mask & of_lines, other=1.0) == 0.0)


@triton.jit
def _steps(kind, at, items, index, tile, low, high, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """Return by how much items [at, at + BLOCK) move the cursor, how far before the end of that each keeps an element, and if it does."""
    item = at + tl.arange(0, BLOCK)
    there = item < items
    step = tl.where(there, 1, 0)
    back = tl.full([BLOCK], 1, tl.int32)
    kept = there
    if KINDS & 32:
        if kind == _STRATIFIED:
            _, width, within = _strata(at, tile, index, low, high, BLOCK)
            step = tl.where(there, width, 0)
            back = width - within
    if KINDS & 1:
        if kind == _SEEDED:
            block = (at // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
            none = tl.zeros_like(block)
            k0 = none + low
            k1 = none + high
            a, b, c, d = tl.philox_impl(block, none + tile.to(tl.uint32), none, none, k0, k1, 10)
            samples = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK])
            gap = _gaps_of(samples, pointer(index, tl.uint32))
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
    return step, back, kept


@triton.jit
def _pair(step, kept, BLOCK: tl.constexpr):
    """Return steps and what they keep in one number, so that both are summed at once: a block moves by at most 255 times its length."""
    if BLOCK <= 1024:
        return step | (kept.to(tl.int32) << 20)
    else:
        return step.to(tl.int64) | (kept.to(tl.int64) << 32)


@triton.jit
def _halves(sums, BLOCK: tl.constexpr):
    """Return the two sums of a sum of pairs."""
    if BLOCK <= 1024:
        return sums & 0xFFFFF, sums >> 20
    else:
        return (sums & 0xFFFFFFFF).to(tl.int32), (sums >> 32).to(tl.int32)


@triton.jit
def items_of(
    term, given, tile, at, cursor, rank, length, corner, width, scaling, KINDS: tl.constexpr, DROPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return what items [at, at + BLOCK) of a tile keep.

    That is positions, numbers among all kept elements, and whether each keeps one; how far they move the cursor, and how many they keep.
    """
    kind, items, index, low, high = given
    if KINDS == _ONLY_STRATIFIED:
        # Nothing is summed: an element is found without those before it, and only the last of a tile can be missing.
        begin, extent, within = _strata(at, tile, index, low, high, BLOCK)
        there = at + tl.arange(0, BLOCK) < items
        position, moved = begin + within, tl.max(tl.where(there, begin + extent, 0), 0) - cursor
        kept = there & (position < length)
        number = tl.arange(0, BLOCK)
        if DROPS:
            kept = kept & ~_is_dropped(term, scaling, in_matrix(corner, width, position)[0], kept)
            number = tl.cumsum(kept.to(tl.int32), 0) - 1
        return position, rank + number, kept, moved, tl.sum(kept.to(tl.int32), 0)
    else:
        step, back, kept = _steps(kind, at, items, index, tile, low, high, KINDS, BLOCK)
        if DROPS:
            position = cursor + tl.cumsum(step, 0) - back
            kept = kept & (position < length)
            kept = kept & ~_is_dropped(term, scaling, in_matrix(corner, width, position)[0], kept)
            number = tl.cumsum(kept.to(tl.int32), 0)
            return position, rank + number - 1, kept, tl.sum(step, 0), tl.sum(kept.to(tl.int32), 0)
        else:
            moves, numbers = _halves(tl.cumsum(_pair(step, kept, BLOCK), 0), BLOCK)
            position = cursor + moves - back
            kept = kept & (position < length)
            moved, found = _halves(tl.sum(_pair(step, kept, BLOCK), 0), BLOCK)
            return position, rank + numbers - 1, kept, moved, found
