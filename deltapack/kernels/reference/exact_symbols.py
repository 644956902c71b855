"""Between pairs of numbers and symbols with raw bits, for the exact codec (spec/codecs/exact.md).

Numbers are their bits, `[n]` unsigned of `Numbers.width`; `predicted` are those that differences are taken from. `far` is the least
exponent that has a symbol of its own where the sign changes, or -1. `classes` has a byte for each 128 numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def symbols_of(predicted: Bits, tuned: Bits, numbers: Numbers, far: int) -> Bytes:
    """Return the symbol of each difference, `[n] uint8`."""
    magnitudes, negative = _differences(predicted, tuned, numbers)
    raw = np.maximum(_bit_lengths(magnitudes) - 1 - numbers.head, 0).astype(np.uint64)
    codes = (raw << np.uint64(numbers.head)) + (magnitudes >> raw)
    symbols = (2 * codes - negative).astype(np.uint8)
    return symbols if far < 0 else far_symbols_of(predicted, tuned, symbols, numbers, far)


def far_symbols_of(predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers, far: int) -> Bytes:
    """Return symbols with far ones where signs change, given those without, `[n] uint8`."""
    flipped, exponents = _flipped(predicted, tuned, numbers, far)
    return np.where(flipped, 128 + exponents - far, symbols).astype(np.uint8)


def raw_bits_of(predicted: Bits, tuned: Bits, symbols: Bytes, numbers: Numbers, far: int) -> tuple[Bytes, Counts]:
    """Return the raw bits of all tiles, each from a fresh byte on, and how many bits each tile has."""
    widths = symbol_table(numbers, far).widths[symbols].astype(np.int64)
    values = _differences(predicted, tuned, numbers)[0]
    if far >= 0:
        flipped = _flipped(predicted, tuned, numbers, far)[0]
        values[flipped] = tuned[flipped]
    parts, counts = [], []
    for start in range(0, len(symbols), TILE):
        wide = widths[start : start + TILE]
        column = np.arange(64)
        bits = values[start : start + TILE, None] >> column.astype(np.uint64) & np.uint64(1)
        parts.append(np.packbits(bits[column < wide[:, None]].astype(np.uint8), bitorder="little"))
        counts.append(int(wide.sum()))
    return np.concatenate(parts), np.array(counts, np.int64)


def numbers_from(predicted: Bits, symbols: Bytes, raw: Bytes, starts: Counts, numbers: Numbers, far: int) -> tuple[Bits, Counts]:
    """Return the numbers, and how many raw bits each tile used.

    Args:
        predicted: `[n]`.
        symbols: `[n] uint8`, each a legal one.
        raw: The raw bits, and as many bytes behind as the longest tile may want.
        starts: In which byte the raw bits of each tile begin, `[tiles]`.
        numbers: What the numbers are.
        far: The least exponent with a symbol of its own, or -1.
    """
    table, out, used = symbol_table(numbers, far), np.empty_like(predicted), np.zeros(len(starts), np.int64)
    for tile, start in enumerate(starts):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        wide = table.widths[symbols[inside]].astype(np.int64)
        used[tile] = wide.sum()
        bits = np.unpackbits(raw[start : start + -(-int(used[tile]) // 8)], bitorder="little")
        spread = np.zeros((len(wide), 64), np.uint8)
        spread[np.arange(64) < wide[:, None]] = bits[: used[tile]]
        magnitudes = table.starts[symbols[inside]] + np.packbits(spread, axis=1, bitorder="little").view("<u8")[:, 0]
        out[inside] = _added(predicted[inside], symbols[inside], magnitudes, numbers, far)
    return out, used


def _added(predicted: Bits, symbols: Bytes, magnitudes: NDArray[np.uint64], numbers: Numbers, far: int) -> NDArray[np.uint64]:
    half, mask = np.uint64(1 << numbers.width - 1), np.uint64((1 << numbers.width) - 1)
    wide = predicted.astype(np.uint64)
    negative = (symbols & 1).astype(bool) ^ (wide >= half if numbers.signed else False)
    total = (_ordinals(wide, numbers) + np.where(negative, -magnitudes, magnitudes)) & mask
    out = _ordinals(total, numbers)
    if far >= 0:
        out = np.where(symbols >= 128, (wide & half ^ half) | magnitudes, out)
    return out


def _ordinals(bits: NDArray[np.uint64], numbers: Numbers) -> NDArray[np.uint64]:
    """Turn sign and magnitude into two's complement, or back."""
    half = np.uint64(1 << numbers.width - 1)
    return np.where(bits >= half, bits ^ (half - np.uint64(1)), bits) if numbers.signed else bits


def _differences(predicted: Bits, tuned: Bits, numbers: Numbers) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the magnitude of each difference, and whether it is negative once turned by the sign of what was predicted."""
    half, mask = np.uint64(1 << numbers.width - 1), np.uint64((1 << numbers.width) - 1)
    wide = predicted.astype(np.uint64)
    step = _ordinals(tuned.astype(np.uint64), numbers) - _ordinals(wide, numbers)
    step = (np.where(wide >= half, -step, step) if numbers.signed else step) & mask
    negative = step >= half
    return np.where(negative, -step & mask, step), negative


def _bit_lengths(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    out = np.zeros(len(values), np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        large = values >= np.uint64(1 << step)
        out[large] += step
        values = np.where(large, values >> np.uint64(step), values)
    return out + (values > 0)


def _flipped(predicted: Bits, tuned: Bits, numbers: Numbers, far: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return where a far symbol is used, and all exponents."""
    signs = (predicted ^ tuned).astype(np.uint64) >> np.uint64(numbers.width - 1)
    exponents = context_bytes(tuned, numbers).astype(np.int64)
    return (signs == 1) & (exponents >= far), exponents


def context_bytes(base: Bits, numbers: Numbers) -> Bytes:
    """Return the context byte of each number, `[n] uint8`."""
    return (base.astype(np.uint64) >> np.uint64(numbers.shift) & np.uint64(numbers.mask)).astype(np.uint8)


def flips_of(predicted: Bits, tuned: Bits, numbers: Numbers) -> tuple[int, int]:
    """Return how many signs change, and the largest exponent of `tuned`."""
    signs = (predicted ^ tuned).astype(np.uint64) >> np.uint64(numbers.width - 1)
    return int(signs.sum()), int(context_bytes(tuned, numbers).max())


def block_sums(symbols: Bytes) -> NDArray[np.uint32]:
    """Return the sum of the symbols of each block, `[blocks] uint32`; the last one may be shorter than 128."""
    return np.add.reduceat(symbols.astype(np.uint32), np.arange(0, len(symbols), EXACT_BLOCK))


def contexts_of(base: Bits, classes: Bytes, maps: NDArray[np.uint8], numbers: Numbers) -> Bytes:
    """Return the context of each number: `maps[class, context byte]`, `[n] uint8`."""
    return maps[_spread(classes, len(base)), context_bytes(base, numbers)]


def _spread(classes: Bytes, length: int) -> Bytes:
    return np.repeat(classes, EXACT_BLOCK)[:length]


def predicted_of(base: Bits, classes: Bytes, stairs: NDArray[np.uint64], numbers: Numbers) -> Bits:
    """Return base plus the step `stairs[class, six bits of the mantissa]`, modulo 2^width, `[n]`."""
    steps = stairs[_spread(classes, len(base)), _places(base, numbers)]
    moved: Bits = (base.astype(np.uint64) + steps).astype(base.dtype)
    return moved


def _places(base: Bits, numbers: Numbers) -> NDArray[np.int64]:
    return (base.astype(np.uint64) >> np.uint64(numbers.stairs) & np.uint64(STEPS - 1)).astype(np.int64)


def stairs_of(
    base: Bits, tuned: Bits, classes: Bytes, wanted: int, every: int, numbers: Numbers
) -> tuple[NDArray[np.uint64], int, int, int]:
    """Return what is mostly added to the bits of the numbers of a class, for each value of six bits of their mantissa.

    Only whole blocks are looked at, every so many of those of the class, from the first one on.

    Returns:
        The candidate of a majority vote (Boyer and Moore) for each place, `[64] uint64`; how many numbers have it, how many did not
        change, and how many there are.
    """
    blocks = [block for block in range(len(base) // EXACT_BLOCK) if classes[block] == wanted][::every]
    at = (np.array(blocks, np.int64)[:, None] * EXACT_BLOCK + np.arange(EXACT_BLOCK)).reshape(-1)
    steps: Any = (tuned[at] - base[at]).astype(np.uint64)
    places = _places(base[at], numbers)
    candidates, votes = np.zeros(STEPS, np.uint64), [0] * STEPS
    for place, step in zip(places.tolist(), steps, strict=True):
        if votes[place] == 0:
            candidates[place], votes[place] = step, 1
        else:
            votes[place] += 1 if candidates[place] == step else -1
    return candidates, int((candidates[places] == steps).sum()), int((steps == 0).sum()), len(at)
