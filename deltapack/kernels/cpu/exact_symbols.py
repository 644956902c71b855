"""Between pairs of numbers and symbols, compiled; `deltapack.kernels.reference.exact_symbols` says what each function does.

Loops are compiled for each width, in arithmetic of 32 bits where that suffices: numba widens every sum, so each is cut back at once, and
LLVM makes vectors of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled, leading_zeros, load_u64
from deltapack.kernels.cpu.exact_packing import few_places, few_room, gathered, pack_raw_bits, packing_room, scatter
from deltapack.kernels.exact_numbers import Numbers, symbol_table
from deltapack.kernels.layout import EXACT_BLOCK, STEPS, TILE, Bits, Bytes, Counts

__all__ = [
    "block_sums",
    "contexts_of",
    "far_symbols_of",
    "flips_of",
    "numbers_from",
    "predicted_of",
    "raw_bits_of",
    "stairs_of",
    "symbols_of",
]

_BLOCK, _LOW = np.uint64(EXACT_BLOCK), np.uint64(31)
_SPARE = 16
"""Bytes behind the raw bits that loads of 64 bits may touch."""


class _Loops(NamedTuple):
    symbols: Any
    far: Any
    parts: Any
    starts: Any
    numbers: Any
    plain: Any
    predict: Any
    votes: Any
    flips: Any


@lru_cache
def _loops(width: int, head: int) -> _Loops:
    """Return the loops over numbers of a width."""
    U, I = (np.uint64, np.int64) if width == 64 else (np.uint32, np.int32)  # noqa: E741
    word = 64 if width == 64 else 32
    zero, one, sign, half = U(0), U(1), U(width - 1), U((1 << width - 1) - 1)
    left, right, last, top = U(word - width), I(word - width), I(word - 1), U(word - 1 - head)
    head_bits, head_one, full = U(head), U(1 << head), U((1 << width) - 1)

    def symbols(predicted: Any, tuned: Any, signed: Any, out: Any) -> None:
        for i in range(np.uint64(len(predicted))):
            x, y = U(predicted[i]), U(tuned[i])
            sx, sy = U(U(zero - U(x >> sign)) & signed), U(U(zero - U(y >> sign)) & signed)
            d = U(U(U(y ^ U(sy & half)) - U(x ^ U(sx & half))) << left)
            d = U(I(I(U(U(d ^ sx) - sx)) >> right))
            negative = U(I(I(d) >> last))
            m = U(U(d ^ negative) - negative)
            r = U(top - U(leading_zeros(U(m | head_one))))
            out[i] = U(U(U(U(r << head_bits) + U(m >> r)) << one) + negative)

    def far(predicted: Any, tuned: Any, shift: Any, mask: Any, least: Any, out: Any) -> None:
        for i in range(np.uint64(len(predicted))):
            y = U(tuned[i])
            flipped, e = U(U(U(predicted[i]) ^ y) >> sign), U(U(y >> shift) & mask)
            is_far = (flipped != zero) & (e >= least)
            out[i] = U(U(128) + U(e - least)) if is_far else U(out[i])

    def parts(predicted: Any, tuned: Any, symbols: Any, signed: Any, is_far: Any, shift: Any, out: Any, widths: Any) -> None:
        for i in range(np.uint64(len(predicted))):
            x, y, s = U(predicted[i]), U(tuned[i]), U(symbols[i])
            sx, sy = U(U(zero - U(x >> sign)) & signed), U(U(zero - U(y >> sign)) & signed)
            d = U(U(U(y ^ U(sy & half)) - U(x ^ U(sx & half))) << left)
            d = U(I(I(U(U(d ^ sx) - sx)) >> right))
            negative = U(I(I(d) >> last))
            m = U(U(d ^ negative) - negative)
            code = U(U(U(s + one) >> one) >> head_bits)
            wide = U(code - one) if code > zero else zero
            far_off = is_far and s >= U(128)
            wide, m = shift if far_off else wide, y if far_off else m
            out[i] = U(m & U(U(one << wide) - one))
            widths[i] = wide

    def starts(symbols: Any, table: Any, widths: Any, raw: Any, byte: Any, out: Any) -> Any:
        at = np.uint64(byte) << np.uint64(3)
        for i in range(np.uint64(len(symbols))):
            symbol = symbols[i]
            wide = np.uint64(widths[symbol])
            low = load_u64(raw, at >> np.uint64(3)) >> (at & np.uint64(7))
            if wide > _LOW:  # numbers of 64 bits only: what one load has behind the first bits of a byte may be less
                low &= (np.uint64(1) << _LOW) - np.uint64(1)
                high = at + _LOW
                low |= (load_u64(raw, high >> np.uint64(3)) >> (high & np.uint64(7))) << _LOW
            at += wide
            out[i] = U(U(table[symbol]) + U(low & ((np.uint64(1) << wide) - np.uint64(1))))
        return at - (np.uint64(byte) << np.uint64(3))

    def numbers(predicted: Any, symbols: Any, magnitudes: Any, signed: Any, is_far: Any, out: Any) -> None:
        for i in range(np.uint64(len(predicted))):
            x, s, m = U(predicted[i]), U(symbols[i]), U(magnitudes[i])
            sx = U(U(zero - U(x >> sign)) & signed)
            negative = U(U(zero - U(s & one)) ^ sx)
            t = U(U(U(x ^ U(sx & half)) + U(U(m ^ negative) - negative)) & full)
            st = U(U(zero - U(t >> sign)) & signed)
            near = U(t ^ U(st & half))
            out[i] = U(U(U(U(x >> sign) ^ one) << sign) | m) if is_far and s >= U(128) else near

    def plain(predicted: Any, symbols: Any, signed: Any, out: Any) -> None:
        for i in range(np.uint64(len(predicted))):
            x, s = U(predicted[i]), U(symbols[i])
            m, sx = U(U(s + one) >> one), U(U(zero - U(x >> sign)) & signed)
            negative = U(U(zero - U(s & one)) ^ sx)
            t = U(U(U(x ^ U(sx & half)) + U(U(m ^ negative) - negative)) & full)
            out[i] = U(t ^ U(U(U(zero - U(t >> sign)) & signed) & half))

    def predict(base: Any, classes: Any, stairs: Any, shift: Any, out: Any) -> None:
        n, block = np.uint64(len(base)), np.uint64(0)
        while block * _BLOCK < n:
            kind = np.uint64(classes[block])
            for i in range(block * _BLOCK, min(n, (block + np.uint64(1)) * _BLOCK)):
                x = U(base[i])
                out[i] = U(x + U(stairs[kind, U(U(x >> shift) & U(STEPS - 1))]))
            block += np.uint64(1)

    def votes(base: Any, tuned: Any, classes: Any, wanted: Any, every: Any, shift: Any, candidates: Any, counts: Any) -> Any:
        hits, same, total, blocks = 0, 0, 0, len(base) // EXACT_BLOCK
        for is_counting in range(2):
            number = 0
            for block in range(blocks):
                if classes[block] != wanted:
                    continue
                number += 1
                if (number - 1) % every:
                    continue
                for i in range(block * EXACT_BLOCK, (block + 1) * EXACT_BLOCK):
                    x = U(base[i])
                    step, place = U(U(U(tuned[i]) - x) & full), U(U(x >> shift) & U(STEPS - 1))
                    if is_counting:
                        total += 1
                        same += step == zero
                        hits += U(candidates[place]) == step
                    elif counts[place] == 0:
                        candidates[place], counts[place] = step, 1
                    else:
                        counts[place] += 1 if U(candidates[place]) == step else -1
        return hits, same, total

    def flips(predicted: Any, tuned: Any, shift: Any, mask: Any) -> Any:
        count, largest = zero, zero
        for i in range(np.uint64(len(predicted))):
            y = U(tuned[i])
            count = U(count + U(U(U(predicted[i]) ^ y) >> sign))
            largest = max(largest, U(U(y >> shift) & mask))
        return count, largest

    loops: tuple[Callable[..., Any], ...] = (symbols, far, parts, starts, numbers, plain, predict, votes, flips)
    return _Loops(*map(compiled, loops))


def _typed(numbers: Numbers, *values: int) -> list[Any]:
    word = np.uint64 if numbers.width == 64 else np.uint32
    return [word(value & (1 << 64 if numbers.width == 64 else 1 << 32) - 1) for value in values]


def symbols_of(predicted: Bits, tuned: Bits, numbers: Numbers, far: int) -> Bytes:
    """See the reference."""
    out = np.empty(len(predicted), np.uint8)
    _loops(numbers.width, numbers.head).symbols(predicted, tuned, *_typed(numbers, -numbers.signed), out)
    return out if far < 0 else far_symbols_of(predicted, tuned, out, numbers, far)


def far_symbols_of(predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers, far: int) -> Bytes:
    """See the reference."""
    out = symbols.copy()
    _loops(numbers.width, numbers.head).far(predicted, tuned, *_typed(numbers, numbers.shift, numbers.mask, far), out)
    return out


def raw_bits_of(predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers, far: int) -> tuple[Bytes, Counts]:
    """See the reference."""
    loops, tiles, most = _loops(numbers.width, numbers.head), -(-len(symbols) // TILE), min(TILE, len(symbols))
    counts = np.zeros(tiles, np.int64)
    if not _has_raw_bits(symbols, numbers, far):
        return np.zeros(0, np.uint8), counts
    typed, room, few = _typed(numbers, -numbers.signed, numbers.shift), packing_room(most), few_room(most, numbers.storage)
    out, values, widths = [], np.empty(most, numbers.storage), np.empty(most, np.uint8)
    for tile in range(tiles):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        own, x, y = symbols[inside], predicted[inside], tuned[inside]
        places = few_places(own, numbers, few)
        if places is not None:
            x, y, own = gathered(x, places, few.x), gathered(y, places, few.y), gathered(own, places, few.symbols)
        loops.parts(x, y, own, typed[0], far >= 0, typed[1], values[: len(own)], widths[: len(own)])
        counts[tile] = pack_raw_bits(values[: len(own)], widths[: len(own)], numbers.width, room)
        out.append(room[0].view(np.uint8)[: -(-int(counts[tile]) // 8)].copy())
    return np.concatenate(out), counts


def _has_raw_bits(symbols: Bytes, numbers: Numbers, far: int) -> bool:
    return bool(symbol_table(numbers, far).widths[: int(symbols.max()) + 1].any())


def numbers_from(predicted: Bits, symbols: Bytes, raw: Bytes, starts: Counts, numbers: Numbers, far: int) -> tuple[Bits, Counts]:
    """See the reference."""
    loops, table, out = _loops(numbers.width, numbers.head), symbol_table(numbers, far), np.empty_like(predicted)
    used, signed, most = np.zeros(len(starts), np.int64), _typed(numbers, -numbers.signed)[0], min(TILE, len(symbols))
    if not _has_raw_bits(symbols, numbers, far):
        loops.plain(predicted, symbols, signed, out)
        return out, used
    magnitudes, few = np.empty(most, np.uint64 if numbers.width == 64 else np.uint32), few_room(most, numbers.storage)
    for tile, start in enumerate(starts):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        own, x, y = symbols[inside], predicted[inside], out[inside]
        places = few_places(own, numbers, few)
        if places is not None:
            loops.plain(x, own, signed, y)
            x, own, y = gathered(x, places, few.x), gathered(own, places, few.symbols), few.y[: len(places)]
        part = magnitudes[: len(own)]
        used[tile] = loops.starts(own, table.starts, table.widths, raw, np.uint64(start), part)
        loops.numbers(x, own, part, signed, far >= 0, y)
        if places is not None:
            scatter(y, places, out[inside])
    return out, used


def predicted_of(base: Bits, classes: Bytes, stairs: NDArray[np.uint64], numbers: Numbers) -> Bits:
    """See the reference."""
    out = np.empty_like(base)
    _loops(numbers.width, numbers.head).predict(base, classes, stairs, *_typed(numbers, numbers.stairs), out)
    return out


def stairs_of(
    base: Bits, tuned: Bits, classes: Bytes, wanted: int, every: int, numbers: Numbers
) -> tuple[NDArray[np.uint64], int, int, int]:
    """See the reference."""
    candidates, counts = np.zeros(STEPS, np.uint64), np.zeros(STEPS, np.int64)
    votes = _loops(numbers.width, numbers.head).votes
    hits, same, total = votes(base, tuned, classes, wanted, every, *_typed(numbers, numbers.stairs), candidates, counts)
    return candidates, int(hits), int(same), int(total)


def flips_of(predicted: Bits, tuned: Bits, numbers: Numbers) -> tuple[int, int]:
    """See the reference."""
    count, largest = _loops(numbers.width, numbers.head).flips(predicted, tuned, *_typed(numbers, numbers.shift, numbers.mask))
    return int(count), int(largest)


def block_sums(symbols: Bytes) -> NDArray[np.uint32]:
    """See the reference."""
    out = np.empty(-(-len(symbols) // EXACT_BLOCK), np.uint32)
    _sums(symbols, out)
    return out


@compiled
def _sums(symbols: Bytes, out: NDArray[np.uint32]) -> None:
    for block in range(np.uint64(len(out))):
        total = np.uint32(0)
        for i in range(block * _BLOCK, min(np.uint64(len(symbols)), (block + np.uint64(1)) * _BLOCK)):
            total = np.uint32(total + np.uint32(symbols[i]))
        out[block] = total


def contexts_of(base: Bits, classes: Bytes, maps: NDArray[np.uint8], numbers: Numbers) -> Bytes:
    """See the reference."""
    out = np.empty(len(base), np.uint8)
    _contexts(base, classes, maps, np.uint64(numbers.shift), np.uint64(numbers.mask), out)
    return out


@compiled
def _contexts(base: Bits, classes: Bytes, maps: NDArray[np.uint8], shift: np.uint64, mask: np.uint64, out: Bytes) -> None:
    n, block = np.uint64(len(base)), np.uint64(0)
    while block * _BLOCK < n:
        kind = np.uint64(classes[block])
        for i in range(block * _BLOCK, min(n, (block + np.uint64(1)) * _BLOCK)):
            out[i] = maps[kind, (np.uint64(base[i]) >> shift) & mask]
        block += np.uint64(1)
