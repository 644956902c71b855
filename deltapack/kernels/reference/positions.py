"""Kept positions of a chunk: from their mask key or from stored bytes, and back to bytes (spec/codecs/index.md)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import FormatError
from deltapack.kernels.layout import ESCAPE, SPARE, TILE, Counts, Positions

__all__ = [
    "bitmap_of",
    "bitmap_positions",
    "byte_gap_positions",
    "byte_gaps",
    "gap_thresholds",
    "gaps_of",
    "out_array",
    "padded_words",
    "philox",
    "require_gaps",
    "rice_gap_positions",
    "sample_positions",
    "tile_counts",
]

_SAMPLES_AT_ONCE = 1 << 18


def tile_counts(positions: NDArray[np.integer], length: int) -> Counts:
    """Return how many of the increasing `positions` lie in each tile of a chunk of `length` elements."""
    ends = np.minimum(np.arange(TILE, length + TILE, TILE), length).astype(positions.dtype)
    return np.diff(np.searchsorted(positions, ends), prepend=0).astype(np.int64)


def out_array(count: int, out: Positions | None) -> Positions:
    """Return an array for `count` positions and some spare ones: `out`, or a new one.

    Raises:
        ValueError: `out` is too small.
    """
    if out is None:
        return np.empty(count + SPARE, np.uint32)
    if len(out) < count + SPARE:
        raise ValueError(f"{len(out)} elements are too few for {count} positions and {SPARE} spare ones")
    return out


def _into(positions: Positions, out: Positions | None) -> Positions:
    if out is None:
        return positions
    out_array(len(positions), out)[: len(positions)] = positions
    return out[: len(positions)]


@lru_cache(maxsize=64)
def gap_thresholds(keep: int) -> NDArray[np.uint64]:
    """Return `[255] uint64` T with T[g] = 2^32 - S[g + 1] (spec/codecs/index.md); a sample's gap is #{T <= u}."""
    survive = 1 << 32
    thresholds = []
    for _ in range(ESCAPE):
        survive = survive * ((1 << 32) - keep) >> 32
        thresholds.append((1 << 32) - survive)
    return np.array(thresholds, np.uint64)


def philox(key: int, tile: NDArray[np.uint64], block: NDArray[np.uint64], third: int = 0, rounds: int = 10) -> NDArray[np.uint64]:
    """Return Philox4x32 samples `[*shape, 4]` of 32 bits for counters (block, tile, third, 0)."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1 = np.broadcast_arrays(block, tile)
    c2, c3 = np.full_like(c0, third), np.zeros_like(c0)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(rounds):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def sample_positions(key: int, keep: int, first_tile: int, lengths: Counts, out: Positions | None = None) -> tuple[Positions, Counts]:
    """Regenerate the seeded mask of a chunk.

    Args:
        key: Mask key, 64 bits.
        keep: K, the density times 2^32, in [1, 2^32).
        first_tile: Number of the chunk's first tile in its tensor.
        lengths: `[tiles] int64` elements of each tile.
        out: Room for `lengths.sum()` positions and 256 more.

    Returns:
        Positions and counts.
    """
    out = None if out is None else out_array(int(lengths.sum()), out)
    density, extent = keep / 2**32, int(lengths.max(initial=1))
    steps = max(1.0, extent * density / (1 - (1 - density) ** ESCAPE))
    blocks = int((steps + 6 * steps**0.5) / 4) + 2
    at_once = max(1, _SAMPLES_AT_ONCE // (4 * blocks))
    parts, counts = [], np.zeros(len(lengths), np.int64)
    for start in range(0, len(lengths), at_once):
        stop = min(start + at_once, len(lengths))
        cursor, kept = _walk(key, keep, first_tile + start, stop - start, blocks, extent)
        kept &= cursor <= lengths[start:stop, None]
        counts[start:stop] = kept.sum(axis=1)
        offset = np.arange(start, stop, dtype=np.int64)[:, None] * TILE - 1
        parts.append((cursor + offset)[kept].astype(np.uint32))
    return _into(np.concatenate(parts) if parts else np.zeros(0, np.uint32), out), counts


def _walk(key: int, keep: int, tile: int, tiles: int, blocks: int, extent: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cursor after each sample and whether the sample kept an element, `[tiles, samples]`; all pass `extent`."""
    numbers = np.arange(tile, tile + tiles, dtype=np.uint64)[:, None]
    while True:
        samples = philox(key, numbers, np.arange(blocks, dtype=np.uint64)[None, :]).reshape(tiles, -1)
        gaps = np.searchsorted(gap_thresholds(keep), samples, side="right")
        kept = gaps < ESCAPE
        cursor = np.cumsum(gaps + kept, axis=1, dtype=np.int64)
        if cursor[:, -1].min() >= extent:
            return cursor, kept
        blocks *= 2


def byte_gap_positions(raw: NDArray[np.uint8], counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
    """Decode one byte per gap, 255 meaning "skip 255, nothing kept here".

    Raises:
        FormatError: The stream is not exactly what the counts need, or a position leaves its tile (rule R9).
    """
    nnz, ends = int(counts.sum()), np.flatnonzero(raw != ESCAPE)
    require_gaps(nnz, len(ends), len(ends) == nnz and not (len(raw) and raw[-1] == ESCAPE))
    gaps = _skipped(ends) * ESCAPE + raw[ends].astype(np.int64)
    return _into(_positions_from_gaps(gaps, counts, lengths), out)


def rice_gap_positions(raw: NDArray[np.uint8], shift: int, counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
    """Decode Rice codes: the low `shift` bits of all gaps, then the rest of each gap in unary.

    Raises:
        FormatError: The stream is not exactly what the counts need, or a position leaves its tile (rule R9).
    """
    nnz = int(counts.sum())
    split = -(-nnz * shift // 8)
    bits = np.unpackbits(raw[:split], bitorder="little")
    ends = np.flatnonzero(np.unpackbits(raw[split:], bitorder="little"))
    used = int(ends[-1]) // 8 + 1 if len(ends) else 0
    whole = len(bits) == 8 * split and not bits[nnz * shift :].any() and used == len(raw) - split
    require_gaps(nnz, len(ends), len(ends) == nnz and whole)
    low = bits[: nnz * shift].reshape(nnz, shift) @ np.left_shift(1, np.arange(shift, dtype=np.int64))
    gaps: NDArray[np.int64] = (_skipped(ends) << shift) | low
    return _into(_positions_from_gaps(gaps, counts, lengths), out)


def require_gaps(expected: int, found: int, is_whole: bool) -> None:
    """Refuse a stream of gaps that is not exactly what the counts need.

    Raises:
        FormatError: It is not whole (rule R9).
    """
    if not is_whole:
        what = "the gap stream keeps another number of elements" if found != expected else "unused bits of the gap stream are set"
        raise FormatError(what, rule="R9", expected=expected, found=found)


def _positions_from_gaps(gaps: NDArray[np.int64], counts: Counts, lengths: Counts) -> Positions:
    starts = np.cumsum(counts) - counts
    steps = np.cumsum(gaps + 1)
    before = np.where(starts > 0, steps[starts - 1], 0) if len(steps) else np.zeros_like(starts)
    within = steps - np.repeat(before, counts) - 1
    if np.any(within >= np.repeat(lengths, counts)):
        raise FormatError("a kept position is outside its tile", rule="R9")
    positions: Positions = (within + np.repeat(np.arange(len(counts)) * TILE, counts)).astype(np.uint32)
    return positions


def bitmap_positions(raw: NDArray[np.uint8], counts: Counts, lengths: Counts, out: Positions | None = None) -> Positions:
    """Decode one bit per element, lowest bit first.

    Raises:
        FormatError: A tile has another number of ones than its count, or an unused bit is set (rule R9).
    """
    positions = np.flatnonzero(np.unpackbits(raw, bitorder="little"))
    if len(positions) and positions[-1] >= lengths.sum():
        raise FormatError("unused bits of the bitmap are set", rule="R9")
    if not np.array_equal(np.bincount(positions // TILE, minlength=len(counts)), counts):
        raise FormatError("the bitmap keeps another number of elements than the table says", rule="R9")
    return _into(positions.astype(np.uint32), out)


def gaps_of(positions: Positions, counts: Counts) -> NDArray[np.int64]:
    """Return the gap `[nnz] int64` before each kept element, afresh in each tile."""
    gaps = _skipped(positions.astype(np.int64))
    starts = (np.cumsum(counts) - counts)[counts > 0]
    tiles = np.flatnonzero(counts)
    gaps[starts] = positions[starts].astype(np.int64) - tiles * TILE
    return gaps


def byte_gaps(positions: Positions, counts: Counts) -> NDArray[np.uint8]:
    """Invert `byte_gap_positions`; returns the stream `[bytes] uint8`."""
    gaps = gaps_of(positions, counts)
    escapes = gaps // ESCAPE
    out = np.full(len(gaps) + int(escapes.sum()), ESCAPE, np.uint8)
    out[np.arange(len(gaps)) + np.cumsum(escapes)] = gaps - escapes * ESCAPE
    return out


def bitmap_of(positions: Positions, length: int) -> NDArray[np.uint8]:
    """Invert `bitmap_positions` for a chunk of `length` elements; returns the stream `[bytes] uint8`."""
    kept = np.zeros(length, np.bool_)
    kept[positions] = True
    return np.packbits(kept, bitorder="little")


def padded_words(raw: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return bytes as little-endian words of 64 bits, with zeros up to at least one word more."""
    words = np.zeros(len(raw) // 8 + 2, "<u8")
    words.view(np.uint8)[: len(raw)] = raw
    return words


def _skipped(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many numbers lie between each of the increasing `places` and the one before it, or -1."""
    return np.diff(places, prepend=np.full(1, -1, np.int64)).astype(np.int64) - 1
