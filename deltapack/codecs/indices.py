"""Stored index codecs: kept positions of a chunk to bytes and back (spec/codecs/index.md).

`positions` are `[nnz] uint32` from the start of the chunk, `counts` and `lengths` `[tiles] int64`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.errors import FormatError
from deltapack.format.digest import TILE

__all__ = [
    "DENSE",
    "best_shift",
    "decode_bitmap",
    "decode_gaps",
    "encode_bitmap",
    "encode_gaps",
    "index_raw_bounds",
]

Positions = NDArray[np.uint32]
Counts = NDArray[np.int64]
ESCAPE = 255
DENSE = 0.385
"""Above this density the best code for gaps is unary: as many zeros as the gap, then a one. That is the bitmap."""


def gaps_of(positions: Positions, counts: Counts) -> NDArray[np.int64]:
    """Return the gap `[nnz] int64` before each kept element, afresh in each tile."""
    gaps = _skipped(positions.astype(np.int64))
    starts = (np.cumsum(counts) - counts)[counts > 0]
    tiles = np.flatnonzero(counts)
    gaps[starts] = positions[starts].astype(np.int64) - tiles * TILE
    return gaps


def best_shift(density: float) -> int:
    """Return the `shift` of the gaps codec that suits a random mask of this density.

    Between densities of 0.02 and 0.12, bytes with escapes and zstd's Huffman stage are smallest (1.2 % above entropy). Below, the
    Huffman tables weigh too much for the few kept elements of a chunk, above, a code of whole bits for single gaps loses too much;
    there Rice codes win (up to 2.4 %), with the parameter whose expected length is least for geometric gaps.
    """
    if 0.02 <= density <= 0.12:
        return 0
    density = min(max(density, 1e-9), 1 - 1e-9)
    return min(range(1, 16), key=lambda shift: shift + 1 / -math.expm1(math.log1p(-density) * 2**shift))


def encode_gaps(positions: Positions, counts: Counts, shift: int) -> bytes:
    """Encode positions with the gaps codec."""
    gaps = gaps_of(positions, counts)
    return _encode_bytes(gaps) if shift == 0 else _encode_rice(gaps, shift)


def decode_gaps(raw: bytes, counts: Counts, lengths: Counts, shift: int) -> Positions:
    """Invert `encode_gaps`.

    Raises:
        FormatError: The stream is not exactly what the counts need, or a position leaves its tile (rule R9).
    """
    nnz = int(counts.sum())
    gaps = _decode_bytes(raw, nnz) if shift == 0 else _decode_rice(raw, nnz, shift)
    return kernels.active().positions_from_gaps(gaps, counts, lengths)


def encode_bitmap(positions: Positions, length: int) -> bytes:
    """Encode positions in a chunk of `length` elements, one bit per element."""
    kept = np.zeros(length, np.bool_)
    kept[positions] = True
    return np.packbits(kept, bitorder="little").tobytes()


def decode_bitmap(raw: bytes, counts: Counts, lengths: Counts) -> Positions:
    """Invert `encode_bitmap`.

    Raises:
        FormatError: A tile has another number of ones than its count, or an unused bit is set (rule R9).
    """
    positions = np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little"))
    if len(positions) and positions[-1] >= lengths.sum():
        raise FormatError("unused bits of the bitmap are set", rule="R9")
    if not np.array_equal(np.bincount(positions // TILE, minlength=len(counts)), counts):
        raise FormatError("the bitmap keeps another number of elements than the table says", rule="R9")
    return positions.astype(np.uint32)


def index_raw_bounds(codec: str, shift: int, counts: Counts, lengths: Counts) -> tuple[int, int]:
    """Return the smallest and largest raw length that an index stream may have (rule R8)."""
    nnz, length = int(counts.sum()), int(lengths.sum())
    if codec == "bitmap":
        return -(-length // 8), -(-length // 8)
    if shift == 0:
        return nnz, nnz + int((lengths // ESCAPE).sum())
    low = -(-nnz * shift // 8)
    return low + -(-nnz // 8), low + -(-(nnz + int((lengths >> shift).sum())) // 8)


def _encode_bytes(gaps: NDArray[np.int64]) -> bytes:
    escapes = gaps // ESCAPE
    out = np.full(len(gaps) + int(escapes.sum()), ESCAPE, np.uint8)
    out[np.arange(len(gaps)) + np.cumsum(escapes)] = gaps - escapes * ESCAPE
    return out.tobytes()


def _decode_bytes(raw: bytes, nnz: int) -> NDArray[np.int64]:
    stream = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(stream != ESCAPE)
    if len(ends) != nnz or (len(stream) and stream[-1] == ESCAPE):
        raise FormatError("the gap stream keeps another number of elements", rule="R9", expected=nnz, found=len(ends))
    return _skipped(ends) * ESCAPE + stream[ends].astype(np.int64)


def _encode_rice(gaps: NDArray[np.int64], shift: int) -> bytes:
    low = (gaps[:, None] >> np.arange(shift)) & 1
    ends = np.cumsum((gaps >> shift) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    parts = (low.astype(np.uint8).reshape(-1), unary)
    return b"".join(np.packbits(part, bitorder="little").tobytes() for part in parts)


def _decode_rice(raw: bytes, nnz: int, shift: int) -> NDArray[np.int64]:
    split = -(-nnz * shift // 8)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)[:split], bitorder="little")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8)[split:], bitorder="little"))
    used = int(ends[-1]) // 8 + 1 if len(ends) else 0
    if len(ends) != nnz or bits[nnz * shift :].any() or used != len(raw) - split:
        raise FormatError("the gap stream keeps another number of elements", rule="R9", expected=nnz, found=len(ends))
    weights = np.left_shift(1, np.arange(shift, dtype=np.int64))
    low = bits[: nnz * shift].reshape(nnz, shift) @ weights
    gaps: NDArray[np.int64] = (_skipped(ends) << shift) | low
    return gaps


def _skipped(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many numbers lie between each of the increasing `places` and the one before it, or -1."""
    return np.diff(places, prepend=np.full(1, -1, np.int64)).astype(np.int64) - 1
