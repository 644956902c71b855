"""The loops over tiles in numpy: the oracle that every faster backend must match bit for bit.

All functions work on one chunk (at most 16 tiles of 65,536 elements). `positions` are `[nnz] uint32`,
counted from the start of the chunk and strictly increasing; `counts` and `lengths` are `[tiles] int64`:
kept elements and elements of each tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.errors import FormatError
from deltapack.kernels import rounding

__all__ = [
    "add_sparse",
    "group_counts",
    "positions_from_gaps",
    "sample_positions",
    "scale_codes",
    "search_steps",
    "sum_terms",
    "unpack_codes",
]

Array = NDArray[np.generic]
Positions = NDArray[np.uint32]
Counts = NDArray[np.int64]
TILE = 1 << 16
GROUP = 128
ESCAPE = 255
_SAMPLES_AT_ONCE = 1 << 18


@lru_cache(maxsize=64)
def gap_thresholds(keep: int) -> NDArray[np.uint64]:
    """Return `[255] uint64` T with T[g] = 2^32 - S[g + 1] (spec/codecs/index.md); a sample's gap is #{T <= u}."""
    survive = 1 << 32
    thresholds = []
    for _ in range(ESCAPE):
        survive = survive * ((1 << 32) - keep) >> 32
        thresholds.append((1 << 32) - survive)
    return np.array(thresholds, np.uint64)


def philox(key: int, tile: NDArray[np.uint64], block: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return Philox4x32-10 samples `[*shape, 4]` of 32 bits for counters (block, tile, 0, 0)."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1 = np.broadcast_arrays(block, tile)
    c2 = c3 = np.zeros_like(c0)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def sample_positions(key: int, keep: int, first_tile: int, lengths: Counts) -> tuple[Positions, Counts]:
    """Regenerate the seeded mask of a chunk.

    Args:
        key: Mask key, 64 bits.
        keep: K, the density times 2^32, in [1, 2^32).
        first_tile: Number of the chunk's first tile in its tensor.
        lengths: `[tiles] int64` elements of each tile.

    Returns:
        Positions and counts.
    """
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
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint32)), counts


def _walk(
    key: int, keep: int, tile: int, tiles: int, blocks: int, extent: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
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


def positions_from_gaps(gaps: NDArray[np.int64], counts: Counts, lengths: Counts) -> Positions:
    """Turn the gaps `[nnz] int64` of all tiles into positions.

    Raises:
        FormatError: A gap leaves its tile (rule R9).
    """
    starts = np.cumsum(counts) - counts
    steps = np.cumsum(gaps + 1)
    before = np.where(starts > 0, steps[starts - 1], 0) if len(steps) else np.zeros_like(starts)
    within = steps - np.repeat(before, counts) - 1
    if np.any(within >= np.repeat(lengths, counts)):
        raise FormatError("a kept position is outside its tile", rule="R9")
    positions: Positions = (within + np.repeat(np.arange(len(counts)) * TILE, counts)).astype(np.uint32)
    return positions


def unpack_codes(raw: NDArray[np.uint8], bits: int, nnz: int) -> NDArray[np.int8]:
    """Unpack `nnz` two's complement codes of 8, 4 or 2 bits, or signs (1 bit: 0 is 1, 1 is -1).

    Raises:
        FormatError: Unused bits are set (rule R9).
    """
    if bits == 8:
        return raw.view(np.int8)
    per_byte = 8 // bits
    codes = np.empty((len(raw), per_byte), np.int8)
    for slot in range(per_byte):
        # Shift the code to the top of the byte and back down: the arithmetic shift extends its sign.
        codes[:, slot] = (raw << np.uint8(8 - bits * (slot + 1))).view(np.int8) >> (8 - bits)
    flat = codes.reshape(-1)
    if flat[nnz:].any():
        raise FormatError("unused bits of the codes are set", rule="R9")
    return 1 + 2 * flat[:nnz] if bits == 1 else flat[:nnz]


def group_counts(counts: Counts) -> NDArray[np.int64]:
    """Return the size of each scale group of a chunk: up to 128 kept elements, never across tiles."""
    groups = -(-counts // GROUP)
    sizes = np.full(int(groups.sum()), GROUP, np.int64)
    last = np.cumsum(groups)[groups > 0] - 1
    sizes[last] = (counts - (groups - 1) * GROUP)[groups > 0]
    return sizes


def scale_codes(
    codes: NDArray[np.int8], scales: NDArray[np.uint16], counts: Counts, factor: np.float32
) -> NDArray[np.float32]:
    """Return the values `[nnz] f32` of codes with bf16 group scales (spec/06-arithmetic.md section 6.1)."""
    with np.errstate(over="ignore", invalid="ignore"):
        steps = (scales.astype(np.uint32) << 16).view(np.float32) * factor
        return codes.astype(np.float32) * np.repeat(steps, group_counts(counts))


def search_steps(
    integers: NDArray[np.int32],
    negative: NDArray[np.bool_],
    start: NDArray[np.uint32],
    inverse: NDArray[np.float32],
    top: int,
    mantissa_bits: int,
    candidates: int,
) -> NDArray[np.uint32]:
    """Find the scale of each group with the least squared error, summed in integers so that no order of summation matters.

    Args:
        integers: `[groups, 128]` the group's values scaled to at most 2047 in magnitude; unused places are zero.
        negative: `[groups]` whether the scale is negative.
        start: `[groups]` bits of the largest candidate, an f32; the others follow downwards.
        inverse: `[groups] f32` what a value was multiplied with to become its integer.
        top: Codes are in [-top, top - 1].
        mantissa_bits: Candidates have this many bits of mantissa.
        candidates: How many to try; of equal ones the largest wins.

    Returns:
        `[groups]` bits of the magnitude of the best scale.
    """
    sign = np.where(negative, -1, 1).astype(np.int32)[:, None]
    exact = integers.astype(np.float32)
    best_bits, best_error = start, np.full(len(integers), np.iinfo(np.int64).max)
    for candidate in range(candidates):
        offset = np.uint32(candidate << (23 - mantissa_bits))
        bits = np.where(start > offset, start - offset, start)
        step = np.maximum(np.rint(bits.view(np.float32) * inverse), np.float32(1))
        codes = np.rint(exact * (np.float32(1) / step)[:, None]).astype(np.int32) * sign
        error = integers - np.clip(codes, -top, top - 1) * (step.astype(np.int32)[:, None] * sign)
        squared = np.einsum("ij,ij->i", error, error, dtype=np.int64)
        better = squared < best_error
        best_bits, best_error = np.where(better, bits, best_bits), np.where(better, squared, best_error)
    return best_bits


def sum_terms(
    length: int, terms: Sequence[tuple[Positions, NDArray[np.float32]]]
) -> tuple[Positions, NDArray[np.float32]]:
    """Add sparse terms in order, in f32, starting from +0.0 (spec/06-arithmetic.md section 6.2).

    Args:
        length: Elements of the chunk.
        terms: Positions `[nnz]` and values `[nnz] f32` of each term; at least one.

    Returns:
        The positions that any term keeps, and their sums.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if len(terms) == 1:
            positions, values = terms[0]
            return positions, np.float32(0) + values
        total, touched = np.zeros(length, np.float32), np.zeros(length, np.bool_)
        for positions, values in terms:
            total[positions] += values
            touched[positions] = True
    union = np.flatnonzero(touched).astype(np.uint32)
    return union, total[union]


def add_sparse(
    base: Array, source: DType, target: DType, positions: Positions, total: NDArray[np.float32]
) -> Array:
    """Return base plus a sparse sum, rounded once (spec/06-arithmetic.md section 6.2).

    Args:
        base: `[n]` elements of `source` in its storage type; not modified.
        source: Type of the base.
        target: Type of the result.
        positions: `[nnz]` elements to change.
        total: `[nnz] f32` what to add to them.

    Returns:
        `[n]` elements of `target` in its storage type; `base` itself where nothing is to do.
    """
    out = rounding.convert(base, source, target)
    if len(positions) == 0:
        return out
    kept = base[positions]
    with np.errstate(over="ignore", invalid="ignore"):
        if "f64" in (source.name, target.name):
            result = rounding.from_f64(rounding.to_f64(kept, source) + total, target)
        else:
            result = rounding.from_f32(rounding.to_f32(kept, source) + total, target)
    out = out.copy() if out is base else out
    out[positions] = result
    return out
