"""Packs of one tensor that is coded exactly: pairs of every kind of difference, chunks of every form and number of lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact import FORMS, decode_exact_chunk, encode_exact_chunk
from deltapack.codecs.exact_bytes import Cursor, varint, write_stream
from deltapack.codecs.exact_coding import decode_symbols, write_tiles
from deltapack.codecs.exact_dense import read_dense
from deltapack.codecs.exact_entry import exact_layout, stored_exact
from deltapack.codecs.exact_table import LANES, write_table
from deltapack.dtypes import DType
from deltapack.format.digest import CHUNK, chunk_count, fingerprint
from deltapack.format.index import BaseRef, Entry, ExactStep, Index
from deltapack.format.writer import open_pack_writer
from deltapack.kernels.exact_numbers import numbers_of

__all__ = ["Array", "chunks_of", "dense_with", "restored", "tuned_from", "weights", "write_pack"]

Array = NDArray[Any]
NO_DIGEST = "0" * 32


def weights(dtype: DType, length: int, seed: int) -> Array:
    """Bits that look like weights: of floats, exponents near each other."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, length * dtype.itemsize, np.uint8).view(f"<u{dtype.itemsize}")
    kind, width = bits.dtype.type, 8 * dtype.itemsize
    if width > 8:
        bits = (bits >> kind(3) | kind(1 << width - 3)) ^ np.where(rng.random(length) < 0.5, kind(1 << width - 1), kind(0))
    return bits.view(dtype.storage)


def tuned_from(base: Array, kind: str, seed: int) -> Array:
    """A fine-tune whose differences are of a kind."""
    rng, bits = np.random.default_rng(seed), base.view(f"<u{base.dtype.itemsize}").copy()
    number, width = bits.dtype.type, 8 * base.dtype.itemsize
    if kind == "any":
        bits = rng.integers(0, 256, bits.nbytes, np.uint8).view(bits.dtype)
    if kind == "near":
        bits += np.round(rng.standard_normal(len(bits)) * 30).astype(np.int64).astype(bits.dtype)
    if kind == "sparse":
        bits[rng.random(len(bits)) < 0.02] ^= number(5)
        bits[len(bits) // 2 : len(bits) // 2 + 1] ^= number(1)
    if kind == "far":
        bits[rng.random(len(bits)) < 0.1] ^= number(1 << width - 2)
    if kind == "stairs":
        bits += (bits >> number(max(0, width - 12))) & number(7)
    if kind == "flips":
        bits += np.round(rng.standard_normal(len(bits)) * 3).astype(np.int64).astype(bits.dtype)
        bits[rng.random(len(bits)) < 0.1] ^= number(1 << width - 1)
    if kind == "classes":
        wild = (np.arange(len(bits)) // 700) % 3 == 1
        bits[wild] ^= rng.integers(0, 1 << width // 2, int(wild.sum())).astype(bits.dtype)
    if kind == "moved":  # by few values, of bits that no order tells
        bits += np.array([1 << width - 1, 3, 1 << width - 2 | 1], bits.dtype)[np.arange(len(bits)) % 3]
    if kind == "special":
        ones = (1 << width) - 1
        patterns = [0, 1, ones, ones >> 1, 1 << width - 1, ones - 1, ones >> 2, ones << 1 & ones, (ones >> 1) ^ (ones >> 6)]
        bits[:] = np.array([pattern & ones for pattern in patterns], bits.dtype)[rng.integers(0, 9, len(bits))]
    return bits.view(base.dtype)


def chunks_of(base: Array | None, tuned: Array, dtype: DType) -> list[bytes]:
    """Encode a tensor."""
    pieces = [slice(start, start + CHUNK) for start in range(0, len(tuned), CHUNK)]
    return [encode_exact_chunk(None if base is None else base[piece], tuned[piece], dtype) for piece in pieces]


def dense_with(data: bytes, base: Array, dtype: DType, lanes: int, *, share: bool) -> tuple[bytes, list[bytes]]:
    """Code a `dense` chunk anew, with another number of lanes and, where it is to share it, the table apart."""
    numbers, loops = numbers_of(dtype), kernels.active()
    assert FORMS[data[0]] == "dense"
    dense = read_dense(Cursor(data[1:]), len(base) * numbers.parts, numbers)
    bits = base.view(numbers.storage)
    contexts = loops.contexts_of(bits, dense.classes, dense.table.maps, numbers)
    symbols = decode_symbols(contexts, dense.table, dense.tiles)
    table, tiles = replace(dense.table, lanes=lanes), dense.tiles
    raw = tiles.raw[: int((-(-tiles.bits // 8)).sum())], tiles.bits
    classes = write_stream(dense.classes.tobytes()) if table.kinds == 2 else b""
    head = varint(LANES.index(lanes)) if share else write_stream(write_table(table, numbers))
    form = FORMS.index("shared" if share else "dense")
    shared = [write_stream(write_table(table, numbers))] if share else []
    return bytes([form]) + head + classes + write_tiles(contexts, symbols, table, raw), shared


def restored(steps: Sequence[Sequence[bytes]], base: Array, dtype: DType) -> Array:
    """What the host makes of steps."""
    now = base
    for step in steps:
        pieces = [now[start : start + CHUNK] for start in range(0, len(now), CHUNK)]
        now = np.concatenate([decode_exact_chunk(data, piece, dtype, len(piece)) for data, piece in zip(step, pieces, strict=True)])
    return now


def write_pack(path: Path, dtype: DType, numel: int, steps: Sequence[Sequence[bytes]], tables: Sequence[bytes] = ()) -> Path:
    """A pack of one tensor `w` of these steps, each with its chunks."""
    shape = (numel,)
    with open_pack_writer(path, force=True) as writer:
        written = []
        for step in steps:
            blob = writer.chunked_blob(exact_layout(numel))
            for data in step:
                blob.append(stored_exact(data))
            written.append(ExactStep(blob.close()))
        entry = Entry("w", "exact", dtype, shape, NO_DIGEST, BaseRef("w", dtype, shape, NO_DIGEST), exact=tuple(written))
        shared = tuple(writer.plain_blob(table) for table in tables)
        result = fingerprint([("w", dtype.name, shape, NO_DIGEST)])
        writer.finish(Index(result, 1, result, 1, entry.nbytes, {}, (entry,), None, "test", ("exact",), tables=shared))
    assert chunk_count(numel) == len(steps[0])
    return path
