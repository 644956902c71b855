"""Packs of one tensor with any codecs, and regions of memory that hold its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltapack.codecs.chunk import TermCodec, decode_term_chunk, encode_term_chunk, term_layout
from deltapack.device.torch_kernels import BITS
from deltapack.dtypes import BY_NAME, DType
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.index import BaseRef, BlobRef, Entry, Index, Term
from deltapack.format.reader import PackReader
from deltapack.format.table import tile_lengths
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.kernels import reference, rounding

NO_DIGEST = "0" * 32
F32 = BY_NAME["f32"]


def write_pack(path: Path, numel: int, codecs: Sequence[TermCodec], density: float = 0.1, seed: int = 0) -> Path:
    """A pack of one tensor `w` of f32 whose terms are random."""
    shape = (numel,)
    with open_pack_writer(path, force=True) as writer:
        terms = tuple(write_term(writer, codec, numel, density, 100 * seed + number) for number, codec in enumerate(codecs))
        digests = writer.plain_blob(bytes(32 * chunk_count(numel))) if numel > CHUNK else None
        entry = Entry("w", "delta", F32, shape, NO_DIGEST, BaseRef("w", F32, shape, NO_DIGEST), terms, digests=digests)
        writer.finish(Index("0" * 64, 1, fingerprint_of(entry), 1, entry.nbytes, {}, (entry,), None, "test"))
    return path


def fingerprint_of(entry: Entry) -> str:
    from deltapack.format.digest import fingerprint

    return fingerprint([(entry.name, entry.dtype.name, entry.shape, entry.digest)])


def write_term(writer: PackWriter, codec: TermCodec, numel: int, density: float, seed: int, stray: int = 0) -> Term:
    """Random differences at random positions; `stray` is added to the count of the first tile of a seeded term, to make it wrong."""
    rng, key = np.random.default_rng(seed), (1 << 63) + seed
    keep = min((1 << 32) - 1, max(1, int(density * 2**32))) if codec.index == "seeded" else 0
    term = Term(codec.index, codec.values, 2.0, 0, BlobRef(0, 0, ""), keep, key if keep else 0, codec.shift)
    blob, nnz = writer.chunked_blob(term_layout(term, numel)), 0
    for chunk in range(chunk_count(numel)):
        length = min(CHUNK, numel - chunk * CHUNK)
        lengths = np.array(tile_lengths(length), np.int64)
        if keep:
            positions, counts = reference.sample_positions(key, keep, chunk * 16, lengths)
            counts[0] += stray
            stray = 0
        else:
            kept = np.ones(length, np.bool_) if codec.index == "all" else rng.random(length) < density
            positions = np.flatnonzero(kept).astype(np.uint32)
            counts = np.bincount(positions >> 16, minlength=len(lengths)).astype(np.int64)
        differences = rng.normal(0, 0.01, int(counts.sum())).astype(np.float32)
        blob.append(encode_term_chunk(codec, positions, differences, counts, length, np.float32(2))[0])
        nnz += int(counts.sum())
    return replace(term, nnz=nnz, blob=blob.close())


def random_bits(numel: int, dtype: DType, seed: int = 0) -> np.ndarray[Any, Any]:
    """Half ordinary numbers, half any bits, in the storage type."""
    rng = np.random.default_rng(seed)
    wild = rng.integers(0, 256, numel * dtype.itemsize, np.uint8).view(dtype.storage)
    tame = rounding.from_f64(rng.normal(0, 1, numel), dtype).view(dtype.storage)
    return np.where(rng.random(numel) < 0.5, wild, tame)


def to_torch(bits: np.ndarray[Any, Any], device: str = "cpu") -> torch.Tensor:
    """A copy of elements as integers of their width."""
    integer = {1: "u1", 2: "i2", 4: "i4", 8: "i8"}[bits.dtype.itemsize]
    return torch.from_numpy(np.ascontiguousarray(bits).view(integer).copy()).to(device)


def unsigned(elements: np.ndarray[Any, Any] | torch.Tensor) -> np.ndarray[Any, Any]:
    array = elements.contiguous().view(BITS[elements.element_size()]).cpu().numpy() if isinstance(elements, torch.Tensor) else elements
    return np.ascontiguousarray(array).view(f"<u{array.dtype.itemsize}")


def expected(reader: PackReader, base: np.ndarray[Any, Any], source: DType, target: DType, weight: float) -> np.ndarray[Any, Any]:
    """What the numpy reference makes of the only tensor of a pack."""
    entry, parts = reader.index.entries[0], []
    blobs = [reader.chunked_blob(term.blob, term_layout(term, entry.common), term.nnz, entry.name) for term in entry.terms]
    for chunk in range(chunk_count(entry.common)):
        piece = base[chunk * CHUNK : (chunk + 1) * CHUNK]
        factors = [np.float32(term.factor) * np.float32(weight) for term in entry.terms]
        terms = [decode_term_chunk(blob, term, chunk, factor) for blob, term, factor in zip(blobs, entry.terms, factors, strict=True)]
        parts.append(reference.add_sparse(piece, source, target, *reference.sum_terms(len(piece), terms)))
    return np.concatenate(parts) if parts else rounding.convert(base, source, target)
