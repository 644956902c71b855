"""Index codecs: kept positions of a chunk to stored bytes and back (spec/codecs/index.md).

`positions` are `[nnz] uint32` from the start of the chunk, `counts` and `lengths` `[tiles] int64`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, TILES_PER_CHUNK
from deltapack.format.index import Term
from deltapack.kernels.layout import ESCAPE, Bytes, Counts, Lines, Positions
from deltapack.kernels.reference.positions import gaps_of, tile_counts

__all__ = [
    "STORED",
    "StoredIndex",
    "best_index",
    "decode_positions",
    "encode_bitmap",
    "encode_gaps",
    "encode_positions",
    "index_raw_bounds",
    "masked_positions",
]

SPARSE = 0.02
DENSE = 0.21


def best_index(density: float) -> tuple[str, int]:
    """Return the stored index codec and its `shift` that suit a random mask of this density.

    Between densities of 0.02 and 0.21, gaps as bytes with zstd's Huffman stage are within 1.3 % of the entropy and the fastest to
    decode. Below, the Huffman tables weigh too much for the few kept elements of a chunk: Rice codes, with the parameter whose expected
    length is least for geometric gaps. Above, gaps of 0 and 1 need less than a code of whole bits can give: the bitmap, whose bytes
    the same stage makes as small (`benchmarks/codes.py`).

    >>> best_index(0.5), best_index(0.1), best_index(0.001)
    (('bitmap', 0), ('gaps', 0), ('gaps', 9))
    """
    if density > DENSE:
        return "bitmap", 0
    if density >= SPARSE:
        return "gaps", 0
    missing = math.log1p(-max(density, 1e-9))
    return "gaps", min(range(1, 16), key=lambda shift: shift + 1 / -math.expm1(missing * 2**shift))


def encode_positions(codec: str, shift: int, positions: Positions, counts: Counts, length: int) -> bytes | None:
    """Return the `index` stream of a chunk of `length` elements; none for codecs that store none."""
    stored = STORED.get(codec)
    return None if stored is None else stored.encode(positions, counts, length, shift)


def encode_gaps(positions: Positions, counts: Counts, shift: int) -> bytes:
    """Encode positions with the gaps codec."""
    if shift == 0:
        return kernels.active().byte_gaps(positions, counts).tobytes()
    return _encode_rice(gaps_of(positions, counts), shift)


def encode_bitmap(positions: Positions, length: int) -> bytes:
    """Encode positions in a chunk of `length` elements, one bit per element."""
    return kernels.active().bitmap_of(positions, length).tobytes()


def decode_positions(
    term: Term,
    raw: bytes | NDArray[np.uint8],
    chunk: int,
    counts: Counts,
    lengths: Counts,
    out: Positions | None = None,
    lines: Lines | None = None,
) -> Positions:
    """Return the kept positions of a chunk of a term.

    Args:
        term: The term.
        raw: Its `index` stream; empty for codecs that store none.
        chunk: Number of the chunk in the tensor.
        counts: Kept elements of each tile, as the table says.
        lengths: Elements of each tile.
        out: Room for the chunk's elements and 256 more; the result is a view of it, unless rows are dropped.
        lines: The term's scales, if it has any but of groups; they say which rows are dropped.

    Raises:
        FormatError: The positions are not exactly those that the table counts, or one leaves its tile or is in a dropped row (rule R9).
    """
    drops, start = lines is not None and len(lines.rows) > 0 and not lines.rows.all(), chunk * CHUNK
    if term.index in STORED:
        positions = STORED[term.index].decode(np.frombuffer(raw, np.uint8), counts, lengths, term.shift, out)
        if drops and lines is not None and not kernels.active().in_kept_rows(positions, start, lines).all():
            raise FormatError("a kept position is in a row that is dropped", rule="R9")
        return positions
    if term.index_codec.kept == "random":
        positions, found = masked_positions(term.index, term.key, term.keep, chunk, lengths, out)
    else:
        positions, found = np.arange(lengths.sum(), dtype=np.uint32), lengths
    if drops and lines is not None:
        positions = positions[kernels.active().in_kept_rows(positions, start, lines)]
        found = tile_counts(positions, int(lengths.sum()))
    if not np.array_equal(found, counts):
        raise FormatError(f"the {term.index} index keeps another number of elements than the table says", rule="R9")
    return positions


def masked_positions(
    index: str, key: int, keep: int, chunk: int, lengths: Counts, out: Positions | None = None
) -> tuple[Positions, Counts]:
    """Return positions and counts of a chunk from a mask that is drawn, by an index codec whose elements are kept at random."""
    draw = kernels.active().stratified_positions if index == "stratified" else kernels.active().sample_positions
    return draw(key, keep, chunk * TILES_PER_CHUNK, lengths, out)


def index_raw_bounds(codec: str, shift: int, counts: Counts, lengths: Counts) -> tuple[int, int]:
    """Return the smallest and largest raw length that an index stream may have (rule R8)."""
    return STORED[codec].bounds(counts, lengths, shift)


def _decode_gaps(stream: Bytes, counts: Counts, lengths: Counts, shift: int, out: Positions | None) -> Positions:
    if shift == 0:
        return kernels.active().byte_gap_positions(stream, counts, lengths, out)
    return kernels.active().rice_gap_positions(stream, shift, counts, lengths, out)


def _gaps_bounds(counts: Counts, lengths: Counts, shift: int) -> tuple[int, int]:
    nnz = int(counts.sum())
    if shift == 0:
        return nnz, nnz + int((lengths // ESCAPE).sum())
    low = -(-nnz * shift // 8)
    return low + -(-nnz // 8), low + -(-(nnz + int((lengths >> shift).sum())) // 8)


def _decode_bitmap(stream: Bytes, counts: Counts, lengths: Counts, shift: int, out: Positions | None) -> Positions:
    return kernels.active().bitmap_positions(stream, counts, lengths, out)


def _bitmap_bounds(counts: Counts, lengths: Counts, shift: int) -> tuple[int, int]:
    return (-(-int(lengths.sum()) // 8),) * 2


def _encode_rice(gaps: NDArray[np.int64], shift: int) -> bytes:
    low = (gaps[:, None] >> np.arange(shift)) & 1
    ends = np.cumsum((gaps >> shift) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    parts = (low.astype(np.uint8).reshape(-1), unary)
    return b"".join(np.packbits(part, bitorder="little").tobytes() for part in parts)


@dataclass(frozen=True)
class StoredIndex:
    """What the stream of an index codec means.

    Attributes:
        encode: From positions, counts, the chunk's length and `shift` to the stream.
        decode: From the stream, counts, lengths, `shift` and room to positions; raises `FormatError`, rule R9.
        bounds: From counts, lengths and `shift` to the smallest and largest raw length.
    """

    encode: Callable[[Positions, Counts, int, int], bytes]
    decode: Callable[[Bytes, Counts, Counts, int, Positions | None], Positions]
    bounds: Callable[[Counts, Counts, int], tuple[int, int]]


STORED: Mapping[str, StoredIndex] = {
    "gaps": StoredIndex(lambda positions, counts, length, shift: encode_gaps(positions, counts, shift), _decode_gaps, _gaps_bounds),
    "bitmap": StoredIndex(lambda positions, counts, length, shift: encode_bitmap(positions, length), _decode_bitmap, _bitmap_bounds),
}
"""The index codecs of `deltapack.format.codecs` whose positions are stored."""
