"""Kept positions of a chunk, compiled; `deltapack.kernels.reference.positions` says what each function does.

Indices are unsigned: for signed ones numba would look for negative indices at every access.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import FormatError
from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import compiled, trailing_zeros
from deltapack.kernels.layout import ESCAPE, TILE, Counts, Positions
from deltapack.kernels.reference.positions import out_array, padded_words

__all__ = ["bitmap_of", "bitmap_positions", "byte_gap_positions", "byte_gaps", "rice_gap_positions", "sample_positions"]

_BLOCKS_AT_ONCE = 64
_SAMPLES = 4 * _BLOCKS_AT_ONCE
_TABLE_BITS = 14
"""A table of 2^14 gaps of 16 bits fits the first-level cache; one sample in 64 needs a look at the thresholds."""
_UNSURE = 256

bitmap_of = reference.bitmap_of


@lru_cache(maxsize=64)
def _gap_table(keep: int) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Return the thresholds, and the gap of the samples that share their high bits; 256 more where it is the least of several."""
    thresholds = reference.gap_thresholds(keep)
    starts = np.arange(1 << _TABLE_BITS, dtype=np.uint64) << np.uint64(32 - _TABLE_BITS)
    least = np.searchsorted(thresholds, starts, side="right")
    most = np.searchsorted(thresholds, starts + np.uint64((1 << 32 - _TABLE_BITS) - 1), side="right")
    return thresholds, np.where(least == most, least, least + _UNSURE).astype(np.uint16)


def sample_positions(key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None) -> tuple[Positions, Counts]:
    """See the reference."""
    thresholds, table = _gap_table(keep)
    counts = np.zeros(len(lengths), np.int64)
    positions = out_array(int(lengths.sum()), out)
    k0, k1 = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    kept = int(_sample(k0, k1, thresholds, table, np.uint32(first_tile), lengths, positions, counts))
    return positions[:kept].copy() if out is None else positions[:kept], counts


@compiled
def _sample(
    k0: np.uint32,
    k1: np.uint32,
    thresholds: NDArray[np.uint64],
    table: NDArray[np.uint16],
    first_tile: np.uint32,
    lengths: Counts,
    positions: Positions,
    counts: Counts,
) -> np.uint64:
    samples = np.empty(_SAMPLES, np.uint32)
    kept = np.uint64(0)
    for tile in range(len(lengths)):
        before, block = kept, np.uint32(0)
        cursor = np.uint32(tile * TILE)
        end = cursor + np.uint32(lengths[tile])
        while cursor < end:
            # What lies past the end is dropped below, so there is room for one more round.
            _philox(k0, k1, np.uint32(first_tile + np.uint32(tile)), block, samples)
            block = np.uint32(block + np.uint32(_BLOCKS_AT_ONCE))
            for sample in samples:
                gap = np.uint32(table[sample >> np.uint32(32 - _TABLE_BITS)])
                if gap >= np.uint32(ESCAPE):
                    if gap >= np.uint32(_UNSURE):
                        gap -= np.uint32(_UNSURE)
                        while gap < np.uint32(ESCAPE) and np.uint64(sample) >= thresholds[gap]:
                            gap += np.uint32(1)
                    if gap == np.uint32(ESCAPE):
                        cursor += gap
                        continue
                cursor += gap
                positions[kept] = cursor
                kept += np.uint64(1)
                cursor += np.uint32(1)
        while kept > before and positions[kept - np.uint64(1)] >= end:
            kept -= np.uint64(1)
        counts[tile] = kept - before
    return kept


@compiled
def _philox(k0: np.uint32, k1: np.uint32, tile: np.uint32, block: np.uint32, out: NDArray[np.uint32]) -> None:
    """Fill `out` with the samples of consecutive blocks; the loop has no dependences, so it vectorises."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    blocks = len(out) // 4
    for i in range(blocks):
        c0, c1 = np.uint64(np.uint32(block + np.uint32(i))), np.uint64(tile)
        c2, c3 = np.uint64(0), np.uint64(0)
        r0, r1 = np.uint64(k0), np.uint64(k1)
        for _ in range(10):
            p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
            c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ r0, p1 & mask, (p0 >> half) ^ c3 ^ r1, p0 & mask
            r0, r1 = (r0 + np.uint64(0x9E3779B9)) & mask, (r1 + np.uint64(0xBB67AE85)) & mask
        out[4 * i] = np.uint32(c0)
        out[4 * i + 1] = np.uint32(c1)
        out[4 * i + 2] = np.uint32(c2)
        out[4 * i + 3] = np.uint32(c3)


def byte_gap_positions(raw: NDArray[np.uint8], counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
    """See the reference."""
    nnz = int(counts.sum())
    positions = out_array(nnz, out)
    if not _byte_gaps(raw, counts, lengths, positions):
        return reference.byte_gap_positions(raw, counts, lengths, out)  # which says what is wrong
    return positions[:nnz]


@compiled
def _byte_gaps(raw: NDArray[np.uint8], counts: Counts, lengths: Counts, positions: Positions) -> bool:
    """Fill in the positions; false where the stream is not exactly what the counts need or a position leaves its tile."""
    kept = at = np.uint64(0)
    length = np.uint64(len(raw))
    for tile in range(len(counts)):
        cursor = np.uint32(tile * TILE)
        last, end = cursor + np.uint32(lengths[tile]), kept + np.uint64(counts[tile])
        while kept < end:
            if at >= length:
                return False
            gap = np.uint32(raw[at])
            at += np.uint64(1)
            cursor += gap
            if gap != np.uint32(ESCAPE):
                positions[kept] = cursor
                kept += np.uint64(1)
                cursor += np.uint32(1)
        if cursor > last:
            return False
    return bool(at == length)


def byte_gaps(positions: Positions, counts: Counts) -> NDArray[np.uint8]:
    """See the reference."""
    out = np.empty(len(positions) + len(counts) * (TILE // ESCAPE), np.uint8)
    return out[: int(_encode_byte_gaps(positions, counts, out))]


@compiled
def _encode_byte_gaps(positions: Positions, counts: Counts, out: NDArray[np.uint8]) -> np.uint64:
    kept = at = np.uint64(0)
    for tile in range(len(counts)):
        cursor, end = np.uint32(tile * TILE), kept + np.uint64(counts[tile])
        while kept < end:
            gap = positions[kept] - cursor
            while gap >= np.uint32(ESCAPE):
                out[at] = np.uint8(ESCAPE)
                at += np.uint64(1)
                gap -= np.uint32(ESCAPE)
            out[at] = np.uint8(gap)
            at += np.uint64(1)
            cursor = positions[kept] + np.uint32(1)
            kept += np.uint64(1)
    return at


def rice_gap_positions(raw: NDArray[np.uint8], shift: int, counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
    """See the reference."""
    nnz = int(counts.sum())
    split = -(-nnz * shift // 8)
    low, unary = raw[:split], raw[split:]
    # The last byte holds the last 1 bit, and no bit is set past the low parts.
    rest = nnz * shift % 8
    whole = len(low) == split and (bool(unary[-1:].any()) if nnz else len(unary) == 0) and not (rest and low[-1] >> rest)
    positions, words = out_array(nnz, out), (padded_words(low), padded_words(unary))
    if not whole or not _rice_gaps(*words, np.uint64(shift), counts, lengths, positions):
        return reference.rice_gap_positions(raw, shift, counts, lengths, out)  # which says what is wrong
    return positions[:nnz]


@compiled
def _rice_gaps(
    low: NDArray[np.uint64],
    unary: NDArray[np.uint64],
    shift: np.uint64,
    counts: Counts,
    lengths: Counts,
    positions: Positions,
) -> bool:
    """Fill in the positions; false where there are not as many 1 bits as the counts need or a position leaves its tile."""
    one, sixty_four = np.uint64(1), np.uint64(64)
    mask = (one << shift) - one
    kept, at, before = np.uint64(0), np.uint64(0), np.uint64(0)  # `before`: bits of the unary part that are used up
    word = unary[at]
    for tile in range(len(counts)):
        cursor = np.uint64(tile * TILE)
        last, end = cursor + np.uint64(lengths[tile]), kept + np.uint64(counts[tile])
        while kept < end:
            while word == np.uint64(0):
                at += one
                if at >= np.uint64(len(unary)):
                    return False
                word = unary[at]
            place = at * sixty_four + trailing_zeros(word)
            word &= word - one
            offset = kept * shift
            column = offset & np.uint64(63)
            bits = low[offset >> np.uint64(6)] >> column
            if column + shift > sixty_four:
                bits |= low[(offset >> np.uint64(6)) + one] << (sixty_four - column)
            cursor += ((place - before) << shift) | (bits & mask)
            before = place + one
            positions[kept] = np.uint32(cursor)
            kept += one
            cursor += one
        if cursor > last:
            return False
    for rest in range(at + one, np.uint64(len(unary))):
        word |= unary[rest]
    return bool(word == np.uint64(0))


def bitmap_positions(raw: NDArray[np.uint8], counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
    """See the reference."""
    length = int(lengths.sum())
    if length % 8 and raw[-1] >> length % 8:
        raise FormatError("unused bits of the bitmap are set", rule="R9")
    positions, found = out_array(length, out), np.zeros(len(counts), np.int64)
    kept = int(_bitmap(raw, *_bit_tables(), positions, found))
    if not np.array_equal(found, counts):
        raise FormatError("the bitmap keeps another number of elements than the table says", rule="R9")
    return positions[:kept].copy() if out is None else positions[:kept]


@lru_cache
def _bit_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the places of the ones of each byte, `[256, 8]` with zeros behind, and their number, `[256]`."""
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.argsort(1 - ones, axis=1, kind="stable").astype(np.uint8), ones.sum(axis=1, dtype=np.uint8)


@compiled
def _bitmap(raw: NDArray[np.uint8], places: NDArray[np.uint8], ones: NDArray[np.uint8], positions: Positions, counts: Counts) -> np.uint64:
    kept = np.uint64(0)
    for at in range(len(raw)):
        byte = raw[at]
        start = np.uint32(8 * at)
        for i in range(8):  # all eight, so that the loop has no branch; the next byte overwrites what is too much
            positions[kept + np.uint64(i)] = start + np.uint32(places[byte, i])
        kept += np.uint64(ones[byte])
        counts[start >> np.uint32(16)] += np.int64(ones[byte])
    return kept
