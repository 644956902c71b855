"""How near stored positions and low-bit codes are to their entropy, for each way of coding them: `python -m benchmarks.codes`.

What the format's choices rest on: which code for which density, and several codes to a byte before zstd.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np

from benchmarks.command import main
from benchmarks.results import Cell, Section, Table, median_seconds
from deltapack.codecs.indices import best_index, decode_positions, encode_bitmap, encode_gaps, encode_positions
from deltapack.codecs.quantize import quantize
from deltapack.codecs.values import pack_codes
from deltapack.format.codecs import VALUE_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.frames import pack_stream, unpack_stream
from deltapack.format.index import BlobRef, Term
from deltapack.format.table import tile_lengths

DENSITIES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.12, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
CODECS = tuple(row.name for row in VALUE_CODECS.values() if row.search is not None)
INDEX_HEADERS = ("density", "entropy b/w", "bytes over %", "Rice, shift", "Rice over %", "bitmap over %")
DECODE_HEADERS = ("density", "bytes, ms", "Rice: x bytes", "bitmap: x bytes")
VALUE_HEADERS = ("codec", "entropy, bits a code", "packed over %", "a code a byte over %")
NOTES = (
    "Over: percent that the streams are above the entropy, after zstd where that makes them smaller. Bytes: gaps with shift 0.",
    "Rice: the shift that the compressor takes at this density, or the best of 1 to 7 where it takes bytes or the bitmap.",
    "Decode: zstd and index codec of one chunk on one core, medians. Rice: the shift that suits the density.",
    "Codes: of Gaussian values, as many in a stream as a chunk keeps at density 0.1; the entropy of single codes as they are distributed.",
)


def measure(quick: bool = False) -> Section:
    """Return the tables."""
    chunks = 1 if quick else 8
    positions = tuple(_index_row(density, chunks) for density in DENSITIES)
    values = tuple(_value_rows(chunks))
    decoding = tuple(_decode_row(density, 3 if quick else 51) for density in DENSITIES)
    tables = (
        Table("positions", "Positions of a random mask", INDEX_HEADERS, positions),
        Table("decoding", "Decode these positions", DECODE_HEADERS, decoding),
        Table("values", "Low-bit codes", VALUE_HEADERS, values),
    )
    return Section("Codes", "python -m benchmarks.codes", tables, NOTES)


def _index_row(density: float, chunks: int) -> tuple[Cell, ...]:
    rng, entropy, stored = np.random.default_rng(0), 0.0, np.zeros(17)  # shifts 0 to 15 of gaps, and the bitmap
    suits = best_index(density)[1]
    shifts = [0, *([suits] if suits else range(1, 8))]
    for _ in range(chunks):
        positions = np.flatnonzero(rng.random(CHUNK) < density).astype(np.uint32)
        counts = np.bincount(positions // TILE, minlength=CHUNK // TILE)
        entropy -= (len(positions) * math.log2(density) + (CHUNK - len(positions)) * math.log2(1 - density)) / 8
        for shift in shifts:
            stored[shift] += len(pack_stream(encode_gaps(positions, counts, shift)))
        stored[-1] += len(pack_stream(encode_bitmap(positions, CHUNK)))
    over = 100 * (stored / entropy - 1)
    rice = min(shifts[1:], key=lambda shift: over[shift])
    return density, 8 * entropy / (chunks * CHUNK), float(over[0]), rice, float(over[rice]), float(over[-1])


def _decode_row(density: float, repeats: int) -> tuple[Cell, ...]:
    lengths = np.array(tile_lengths(CHUNK), np.int64)
    positions = np.flatnonzero(np.random.default_rng(0).random(CHUNK) < density).astype(np.uint32)
    counts, room = np.bincount(positions // TILE, minlength=len(lengths)), np.empty(CHUNK + 256, np.uint32)
    rice = best_index(density)[1] or max(1, round(math.log2(0.7 / density)))

    def seconds(index: str, shift: int) -> float:
        raw = encode_positions(index, shift, positions, counts, CHUNK) or b""
        term, stored = Term(index, "f32", 1.0, 0, BlobRef(0, 0, ""), shift=shift), pack_stream(raw)
        return median_seconds(lambda: decode_positions(term, unpack_stream(stored, len(raw)), 0, counts, lengths, room), repeats)

    single = seconds("gaps", 0)
    return density, 1000 * single, seconds("gaps", rice) / single, seconds("bitmap", 0) / single


def _value_rows(chunks: int) -> Iterator[tuple[Cell, ...]]:
    for codec in CODECS:
        rng, entropy, packed, single = np.random.default_rng(0), 0.0, 0, 0
        for _ in range(chunks):
            values = rng.normal(0, 1e-3, CHUNK // 10).astype(np.float32)
            codes, _ = quantize(codec, values, np.array([len(values)], np.int64))
            shares = np.unique(codes, return_counts=True)[1] / len(codes)
            entropy -= len(codes) * float((shares * np.log2(shares)).sum()) / 8
            packed += len(pack_stream(pack_codes(codec, codes)))
            single += len(pack_stream(codes.tobytes()))
        yield codec, 8 * entropy / (chunks * (CHUNK // 10)), 100 * (packed / entropy - 1), 100 * (single / entropy - 1)


if __name__ == "__main__":
    sys.exit(main(measure))
