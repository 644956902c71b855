"""Exact chunks decoded by Triton kernels: range-coded symbols, raw bits and byte planes; same bits as `deltapack.codecs.exact`.

A program decodes one tile of 32 lanes, or as many tiles as fill a warp: its numbers lie in a matrix of tiles and lanes. In each step a
lane decodes a number; where the words and the raw bits of the lanes lie is a prefix sum over the lanes of a tile. What the next step needs
of the base is loaded before this one is done. Results are written over the base. All that a program knows stands in tables of int64, with
addresses of 64 bits; every place in a stream is compared with the stream's length before it is loaded, whatever was decoded before.

With `TRITON_INTERPRET=1` in the environment the same code runs on CPU tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deltapack.device.triton_rounding import pointer
from deltapack.kernels.layout import EXACT_BLOCK, RANS_LOW, STEPS

__all__ = ["JOINED", "PLANES", "SYMBOLS", "TABLES", "WARP", "decode_symbols", "expand_tables", "join_planes"]

SYMBOLS = (
    *("first", "length", "words", "count", "raw", "bits", "states", "table", "maps", "classes", "steps", "changed", "base", "target"),
    *("precision", "far"),
)
"""Columns of the table of tiles of symbols. A tile has `length` numbers, the first of which is number `first` of what is coded; `words`,
`raw`, `states`, `table`, `maps`, `classes`, `steps` and `changed` are addresses of streams (`deltapack.device.exact_ready.ReadySymbols`),
those of words, raw bits and states of the tile's own part; 0: there is none. It has `count` words and `bits` raw bits. `base` is the
address of the chunk's first number; of symbols that are bytes of a plane `target` is that of the first such byte."""
TABLES = ("firsts", "table", "precision")
"""Columns of the table of contexts: addresses of the first slots of symbols and of the context's decoding table, and its precision."""
JOINED = ("first", "length", "base", "changed", "moves", "planes")
"""Columns of the table of tiles of planes: as in `SYMBOLS`; whether planes are added to the base; and for each of 8 planes, the address
of the tile's first byte, and 1, or 0 where that one stands for all."""
PLANES = len(JOINED) - 1
"""The column that planes begin in."""
WARP = 32
_SYMBOLS, _TABLES, _JOINED, _PLANES = (tl.constexpr(n) for n in (len(SYMBOLS), len(TABLES), PLANES + 16, PLANES))
_BLOCK, _LOW, _STEPS = (tl.constexpr(n) for n in (EXACT_BLOCK, RANS_LOW, STEPS))


@triton.jit
def _number_pointer(address, WIDTH: tl.constexpr):
    if WIDTH == 64:
        return pointer(address, tl.uint64)
    elif WIDTH == 32:
        return pointer(address, tl.uint32)
    elif WIDTH == 16:
        return pointer(address, tl.uint16)
    else:
        return pointer(address, tl.uint8)


@triton.jit
def _load_number(address, place, mask, WIDTH: tl.constexpr):
    """Return numbers as the unsigned integers that they are computed in."""
    raw = tl.load(_number_pointer(address, WIDTH) + place, mask=mask, other=0)
    return raw.to(tl.uint64) if WIDTH == 64 else raw.to(tl.uint32)


@triton.jit
def _place(changed, at, mask):
    """Return which numbers of a chunk those numbers are that are given anew."""
    is_listed = changed != 0
    listed = tl.load(pointer(changed, tl.uint32) + at, mask=mask & is_listed, other=0)
    return tl.where(is_listed, listed.to(tl.int64), at)


@triton.jit
def _fetch(row, number, length, present, WIDTH: tl.constexpr, SHIFT: tl.constexpr, MASK: tl.constexpr):
    """Return place, number of the base, class and context of numbers of tiles."""
    there = number < length
    at = tl.load(row, mask=present, other=0) + number.to(tl.int64)
    maps, classes = tl.load(row + 8, mask=present, other=0), tl.load(row + 9, mask=present, other=0)
    changed, base = tl.load(row + 11, mask=present, other=0), tl.load(row + 12, mask=present, other=0)
    place = _place(changed, at, there)
    x = _load_number(base, place, there, WIDTH)
    kind = tl.load(pointer(classes, tl.uint8) + at // _BLOCK, mask=there & (classes != 0), other=0).to(tl.int32)
    byte = ((x >> SHIFT) & (MASK & 255)).to(tl.int32)
    context = tl.load(pointer(maps, tl.uint8) + (kind * 256 + byte), mask=there, other=0).to(tl.int32)
    return place, x, kind, context


@triton.jit
def _raw_bits(raw, bits, at, width, mask, WIDTH: tl.constexpr):
    """Return raw bits of a tile from bit `at` on, as numbers; beyond its last word there is nothing but zeros."""
    SIZE: tl.constexpr = 64 if WIDTH == 64 else 32
    # Streams are of whole u64.
    words = (bits + 63) // 64 * (64 // SIZE)
    word = at // SIZE
    mask = mask & (width > 0)
    low = _load_number(raw, word, mask & (word < words), SIZE)
    high = _load_number(raw, word + 1, mask & (word + 1 < words), SIZE)
    shift = (at % SIZE).to(low.dtype)
    value = (low >> shift) | ((high << (SIZE - 1 - shift)) << 1)
    one = tl.full(low.shape, 1, low.dtype)
    return value & ((one << width.to(low.dtype)) - 1)


@triton.jit
def _meaning(symbol, far, SHIFT: tl.constexpr, HEAD: tl.constexpr, FAR: tl.constexpr, WIDTH: tl.constexpr):
    """Return whether symbols are far, how many raw bits follow them, and what those are added to."""
    code = (symbol + 1) >> 1
    width = tl.maximum((code >> HEAD) - 1, 0)
    head = tl.where(width == 0, code, (1 << HEAD) | (code & ((1 << HEAD) - 1)))
    start = (head.to(tl.uint64) if WIDTH == 64 else head.to(tl.uint32)) << width
    is_far = (symbol >= 128) & (far >= 0)
    if FAR:
        width = tl.where(is_far, SHIFT, width)
        start = tl.where(is_far, (far + symbol - 128).to(tl.uint32) << SHIFT, start)
    return is_far, width, start


@triton.jit
def _ordinals(x, WIDTH: tl.constexpr, SIGNED: tl.constexpr):
    """Turn sign and magnitude into two's complement, or back."""
    if SIGNED:
        return tl.where((x >> (WIDTH - 1)) != 0, x ^ ((1 << (WIDTH - 1)) - 1), x)
    else:
        return x


@triton.jit
def _cut(x, WIDTH: tl.constexpr):
    """Return the bits of a number without what sums have above them."""
    if WIDTH < 32:
        return x & ((1 << WIDTH) - 1)
    else:
        return x


@triton.jit
def _moved(x, symbol, is_far, magnitude, WIDTH: tl.constexpr, SIGNED: tl.constexpr, FAR: tl.constexpr):
    """Return the numbers whose differences from predicted ones are known."""
    is_negative = (symbol & 1) != 0
    if SIGNED:
        is_negative = is_negative ^ ((x >> (WIDTH - 1)) != 0)
    ordinal = _ordinals(x, WIDTH, SIGNED)
    total = _cut(tl.where(is_negative, ordinal - magnitude, ordinal + magnitude), WIDTH)
    out = _ordinals(total, WIDTH, SIGNED)
    if FAR:
        out = tl.where(is_far, (((x >> (WIDTH - 1)) ^ 1) << (WIDTH - 1)) | magnitude, out)
    return out


@triton.jit(do_not_specialize=["count"])
def decode_symbols(
    rows, violation, count,
    WIDTH: tl.constexpr, SIGNED: tl.constexpr, SHIFT: tl.constexpr, MASK: tl.constexpr, HEAD: tl.constexpr, STAIRS: tl.constexpr,
    FAR: tl.constexpr, PLANE: tl.constexpr, LANES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Decode tiles of symbols into numbers, or into bytes of a plane.

    Args:
        rows: `[count, 16] int64`, see `SYMBOLS`.
        violation: `[1] int64`; becomes the number of the first tile that does not end where it should, if that is less.
        count: Number of tiles.
        WIDTH: Bits of a number; this and the following as in `deltapack.kernels.exact_numbers.Numbers`.
        SIGNED: See there.
        SHIFT: See there.
        MASK: See there.
        HEAD: See there.
        STAIRS: See there.
        FAR: See there.
        PLANE: Whether symbols are bytes of a plane.
        LANES: Lanes of a tile.
        TILES: Tiles of a program.
    """
    tile = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    present = tile < count
    row = rows + tile * _SYMBOLS
    length, words = tl.load(row + 1, mask=present, other=0).to(tl.int32), tl.load(row + 2, mask=present, other=0)
    most, raw = tl.load(row + 3, mask=present, other=0).to(tl.int32), tl.load(row + 4, mask=present, other=0)
    bits, table = tl.load(row + 5, mask=present, other=0).to(tl.int32), tl.load(row + 7, mask=present, other=0)
    steps, base, target = (
        tl.load(row + 10, mask=present, other=0),
        tl.load(row + 12, mask=present, other=0),
        tl.load(row + 13, mask=present, other=0),
    )
    precision = tl.load(row + 14, mask=present, other=10).to(tl.uint32)
    far, first = tl.load(row + 15, mask=present, other=-1).to(tl.int32), tl.load(row, mask=present, other=0)
    states = tl.load(row + 6, mask=present, other=0)
    state = tl.load(pointer(states, tl.uint32) + lane, mask=present & (lane >= 0), other=_LOW)
    slots = (tl.full(precision.shape, 1, tl.uint32) << precision) - 1
    used = tl.zeros([TILES, 1], tl.int32)
    taken = tl.zeros([TILES, 1], tl.int32)
    end = tl.max(length)
    if not PLANE:
        place, x, kind, context = _fetch(row, lane + used, length, present, WIDTH, SHIFT, MASK)
    for at in range(0, end, LANES):
        number = lane + (used * 0 + at)
        there = number < length
        if PLANE:
            key = (state & slots).to(tl.int32)
        else:
            later, x_later, kind_later, context_later = _fetch(row, number + LANES, length, present, WIDTH, SHIFT, MASK)
            key = ((context.to(tl.uint32) << precision) + (state & slots)).to(tl.int32)
        entry = tl.load(pointer(table, tl.uint32) + key, mask=there, other=0)
        symbol = (entry & 255).to(tl.int32)
        moved = (((entry >> 8) & 4095) + 1) * (state >> precision) + (entry >> 20)
        empty = there & (moved < _LOW)
        if PLANE:
            both = empty.to(tl.int32)
        else:
            is_far, width, start = _meaning(symbol, far, SHIFT, HEAD, FAR, WIDTH)
            width = tl.where(there, width, 0)
            # At most 32 words and 32 * 62 bits: one prefix sum for both.
            both = empty.to(tl.int32) | (width << 8)
        sums = tl.cumsum(both, 1)
        place_of_word = used + (sums & 255) - 1
        word = tl.load(pointer(words, tl.uint16) + place_of_word, mask=empty & (place_of_word < most), other=0)
        state = tl.where(there, tl.where(empty, (moved << 16) | word.to(tl.uint32), moved), state)
        if PLANE:
            tl.store(pointer(target, tl.uint8) + (first + number.to(tl.int64)), symbol.to(tl.uint8), mask=there)
        else:
            magnitude = start
            if WIDTH > 8:
                magnitude += _raw_bits(raw, bits, taken + (sums >> 8) - width, width, there, WIDTH)
            if STAIRS >= 0:
                step = kind * _STEPS + ((x >> STAIRS) & (_STEPS - 1)).to(tl.int32)
                x = _cut(x + tl.load(pointer(steps, tl.uint64) + step, mask=there & (steps != 0), other=0).to(x.dtype), WIDTH)
            out = _moved(x, symbol, is_far, magnitude, WIDTH, SIGNED, FAR)
            into = _number_pointer(base, WIDTH) + place
            tl.store(into, out.to(into.dtype.element_ty), mask=there)
            place, x, kind, context = later, x_later, kind_later, context_later
        total = tl.sum(both, 1, keep_dims=True)
        used += total & 255
        taken += total >> 8
    whole = (used == most) & (taken == bits) & (tl.max(tl.where(state == _LOW, 0, 1), 1, keep_dims=True) == 0)
    wrong = tl.min(tl.where(present & (whole == 0), tile, count.to(tl.int64)))
    if wrong < count:
        tl.atomic_min(violation, wrong)


@triton.jit
def expand_tables(rows, BLOCK: tl.constexpr):
    """Write the decoding tables of contexts, one a program; see `deltapack.kernels.reference.exact_model.decoding_table`.

    Args:
        rows: `[contexts, 3] int64`, see `TABLES`.
        BLOCK: Slots that are looked up at once.
    """
    row = rows + tl.program_id(0).to(tl.int64) * _TABLES
    firsts, table = pointer(tl.load(row), tl.uint16), pointer(tl.load(row + 1), tl.uint32)
    total = tl.full([], 1, tl.int32) << tl.load(row + 2).to(tl.int32)
    for at in range(0, total, BLOCK):
        slot = at + tl.arange(0, BLOCK)
        symbol = tl.zeros([BLOCK], tl.int32)
        for level in tl.static_range(8):
            half = 128 >> level
            symbol += tl.where(tl.load(firsts + (symbol + half)).to(tl.int32) <= slot, half, 0)
        first = tl.load(firsts + symbol).to(tl.int32)
        after = tl.load(firsts + (symbol + 1), mask=symbol < 255, other=0).to(tl.int32)
        frequency = tl.where(symbol < 255, after, total) - first
        entry = symbol.to(tl.uint32) | ((frequency - 1).to(tl.uint32) << 8) | ((slot - first).to(tl.uint32) << 20)
        tl.store(table + slot, entry, mask=slot < total)


@triton.jit
def join_planes(rows, WIDTH: tl.constexpr, SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Make numbers of byte planes: a tile for each program of the first dimension of the grid, `BLOCK` numbers of it for each of the other.

    Args:
        rows: `[tiles, 21] int64`, see `JOINED`.
        WIDTH: Bits of a number.
        SIGNED: Whether the lowest bit of numbers that stand alone is their sign.
        BLOCK: Numbers of a program.
    """
    row = rows + tl.program_id(0).to(tl.int64) * _JOINED
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = number < tl.load(row + 1)
    base, changed, moves = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    place = _place(changed, tl.load(row) + number.to(tl.int64), there)
    x = _load_number(base, place, there & (moves != 0), WIDTH)
    whole = tl.zeros_like(x)
    for plane in tl.static_range(WIDTH // 8):
        byte = pointer(tl.load(row + (_PLANES + 2 * plane)), tl.uint8) + number * tl.load(row + (_PLANES + 1 + 2 * plane))
        whole |= tl.load(byte, mask=there, other=0).to(x.dtype) << (8 * plane)
    alone = whole
    if SIGNED:
        alone = (whole >> 1) | ((whole & 1) << (WIDTH - 1))
    into = _number_pointer(base, WIDTH) + place
    tl.store(into, tl.where(moves != 0, _cut(whole + x, WIDTH), alone).to(into.dtype.element_ty), mask=there)
