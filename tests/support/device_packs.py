"""Packs of one tensor with any codecs, and regions of memory that hold its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deltapack.codecs.chunk import TermCodec, decode_term_chunk, encode_term_chunk, term_chunks, term_layout
from deltapack.codecs.factors import Factors
from deltapack.codecs.indices import masked_positions
from deltapack.codecs.scaling import DROPPED, Scaling
from deltapack.device.torch_kernels import BITS
from deltapack.dtypes import BY_NAME, DType
from deltapack.format.codecs import INDEX_CODECS
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.frames import pack_stream
from deltapack.format.index import BaseRef, BlobRef, Entry, Index, Term
from deltapack.format.reader import PackReader
from deltapack.format.table import tile_lengths
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.kernels import reference, rounding
from support import backends

NO_DIGEST = "0" * 32
F32 = BY_NAME["f32"]


@dataclass(frozen=True)
class Product:
    """Stands for the codec of a term of factors."""

    rank: int
    bits: int


Codec = TermCodec | Product


def write_pack(path: Path, numel: int, codecs: Sequence[Codec], density: float = 0.1, seed: int = 0, width: int = 0) -> Path:
    """A pack of one tensor `w` of f32, a matrix where a width is given, whose terms are random."""
    shape = (numel // width, width) if width else (numel,)
    with open_pack_writer(path, force=True) as writer:
        terms = tuple(
            write_product(writer, codec, numel, width, 100 * seed + number)
            if isinstance(codec, Product)
            else write_term(writer, codec, numel, density, 100 * seed + number)
            for number, codec in enumerate(codecs)
        )
        digests = writer.plain_blob(bytes(32 * chunk_count(numel))) if numel > CHUNK else None
        entry = Entry("w", "delta", F32, shape, NO_DIGEST, BaseRef("w", F32, shape, NO_DIGEST), terms, digests=digests)
        writer.finish(index_of(entry))
    return path


def index_of(entry: Entry) -> Index:
    """The index of a pack of one tensor."""
    required = tuple(sorted({feature for term in entry.terms for feature in term.features}))
    return Index(fingerprint_of(entry.base or entry), 1, fingerprint_of(entry), 1, entry.nbytes, {}, (entry,), None, "test", required)


def fingerprint_of(entry: Entry | BaseRef) -> str:
    from deltapack.format.digest import fingerprint

    return fingerprint([(entry.name, entry.dtype.name, entry.shape, entry.digest)])


def write_term(writer: PackWriter, codec: TermCodec, numel: int, density: float, seed: int, stray: int = 0) -> Term:
    """Random differences at random positions; `stray` is added to the count of the first tile of a random mask, to make it wrong."""
    rng, key, row = np.random.default_rng(seed), (1 << 63) + seed, INDEX_CODECS[codec.index]
    least = row.parameters[0].least if row.kept == "random" else 0
    keep = min((1 << 32) - 1, max(least, int(density * 2**32))) if row.kept == "random" else 0
    kind, scale = ("", 0.0) if codec.scaling is None else (codec.scaling.kind, codec.scaling.lines.scale)
    term = Term(codec.index, codec.values, 2.0, 0, BlobRef(0, 0, ""), keep, key if keep else 0, codec.shift, kind, scale)
    if kind not in ("", "tensor"):  # which it says of its chunks, too
        term = replace(term, lines=term.blob)
    blob, nnz = writer.chunked_blob(term_layout(term, numel)), 0
    for chunk in range(chunk_count(numel)):
        length = min(CHUNK, numel - chunk * CHUNK)
        lengths = np.array(tile_lengths(length), np.int64)
        if keep:
            positions, counts = masked_positions(codec.index, key, keep, chunk, lengths)
            counts[0] += stray
            stray = 0
        else:
            kept = np.ones(length, np.bool_) if codec.index == "all" else rng.random(length) < density
            positions = np.flatnonzero(kept).astype(np.uint32)
            counts = np.bincount(positions >> 16, minlength=len(lengths)).astype(np.int64)
        differences = rng.normal(0, 0.01, int(counts.sum())).astype(np.float32)
        coded, _ = encode_term_chunk(codec, positions, differences, counts, length, np.float32(2), chunk * CHUNK)
        blob.append(coded)
        nnz += sum(coded.counts)
    term = replace(term, nnz=nnz, blob=blob.close())
    return term if term.lines is None or codec.scaling is None else replace(term, lines=writer.plain_blob(pack_stream(codec.scaling.raw)))


def write_product(writer: PackWriter, product: Product, numel: int, width: int, seed: int) -> Term:
    """Random factors, which are small."""
    rng, half = np.random.default_rng(seed), 1 << product.bits - 1
    left, right = (rng.integers(-half, half, (product.rank, count)).astype(np.int8) for count in (numel // width, width))
    scales = rng.normal(0, 0.05, (2, product.rank)).astype(np.float32)
    factors = Factors.of_codes(left, right, scales, product.bits)
    return replace(factors.term(numel, writer.plain_blob(factors.stored())), factor=2.0)


def scaling(kind: Literal["tensor", "rows", "outer"], rows: int, columns: int, dropped: float = 0.3, seed: int = 0) -> Scaling:
    """Scales for differences of about a hundredth, some rows dropped; so large that half of the trits are 0."""
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(120, 136, count).astype(np.uint8) for count in (rows, columns)]
    sizes[0][rng.random(rows) < dropped] = DROPPED
    of_rows, of_columns = {"tensor": (False, False), "rows": (True, False), "outer": (True, True)}[kind]
    none = np.zeros(0, np.uint8)
    return Scaling(kind, 0.01, sizes[0] if of_rows else none, sizes[1] if of_columns else none, columns if of_rows else 1, 0.7)


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
    return backends.unsigned(array)


def expected(reader: PackReader, base: np.ndarray[Any, Any], source: DType, target: DType, weight: float) -> np.ndarray[Any, Any]:
    """What the numpy reference makes of the only tensor of a pack."""
    entry, parts = reader.index.entries[0], []
    blobs = [term_chunks(reader, entry, term) for term in entry.terms]
    for chunk in range(chunk_count(entry.common)):
        piece = base[chunk * CHUNK : (chunk + 1) * CHUNK]
        factors = [np.float32(term.factor) * np.float32(weight) for term in entry.terms]
        terms = [decode_term_chunk(blob, term, chunk, factor) for blob, term, factor in zip(blobs, entry.terms, factors, strict=True)]
        parts.append(reference.add_sparse(piece, source, target, *reference.sum_terms(len(piece), terms)))
    return np.concatenate(parts) if parts else rounding.convert(base, source, target)
