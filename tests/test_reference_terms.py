"""Random terms of every codec, scaling and rank, written by the package: it and spec/reference_decoder.py make the same bits of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.builders import FLOATS, Tensor, cast, decode_by_spec, edited, read_file, reference_decoder, write_file

import deltapack
from deltapack import kernels
from deltapack.codecs.chunk import TermCodec, encode_term_chunk, term_layout
from deltapack.codecs.factors import Factors
from deltapack.codecs.indices import masked_positions
from deltapack.codecs.scaling import Scaling
from deltapack.codecs.stored import encode_stored_chunk, stored_layout
from deltapack.dtypes import BY_NAME
from deltapack.format.codecs import INDEX_CODECS, SCALES, VALUE_CODECS
from deltapack.format.digest import chunk_digest, fingerprint, root_digest
from deltapack.format.frames import pack_stream
from deltapack.format.index import BaseRef, BlobRef, Entry, Index, Term
from deltapack.format.table import tile_lengths
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.kernels import reference as kernels_in_numpy

NOT_ONE = 1.0000000596046448
"""A weight that is 1 as an f32: values are those of the pack itself, but its digests, which nobody knows here, promise nothing."""
NOWHERE = BlobRef(0, 0, "")
Draw = Callable[[Any], Any]


def drawn_scaling(draw: Draw, values: str, shape: tuple[int, ...], rng: np.random.Generator) -> Scaling | None:
    """How codes of a tensor are scaled; none where groups of them are, or they are floats."""
    codec = VALUE_CODECS[values]
    kinds = [None] * (codec.grouped or not codec.scaled) + list(SCALES if len(shape) > 1 else SCALES[:1]) * codec.scaled
    kind = draw(st.sampled_from(kinds))
    scale, threshold = float(10 ** rng.uniform(-4, -1)), float(rng.uniform(0.3, 1.5))
    if kind is None or kind == "tensor":
        return None if kind is None else Scaling("tensor", scale, threshold=threshold)
    rows, width = int(np.prod(shape[:-1])), shape[-1]
    lines = [rng.integers(110, 146, count).astype(np.uint8) for count in (rows, width)]
    lines[0][rng.random(rows) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    return Scaling(kind, scale, lines[0], lines[1] if kind == "outer" else lines[1][:0], width, threshold)


def write_term(draw: Draw, writer: PackWriter, shape: tuple[int, ...], rng: np.random.Generator) -> Term:
    """A term of a tensor whose common elements are of this shape, and of one chunk."""
    common, factor = int(np.prod(shape)), float(np.float32(10 ** rng.uniform(-2, 2)))
    if len(shape) > 1 and draw(st.integers(0, 3)) == 0:
        return write_factors(draw, writer, (common // shape[-1], shape[-1]), factor, rng)
    index, values = draw(st.sampled_from(sorted(INDEX_CODECS))), draw(st.sampled_from(sorted(VALUE_CODECS)))
    codec = TermCodec(index, values, draw(st.integers(0, 15)) if index == "gaps" else 0, drawn_scaling(draw, values, shape, rng))
    keep, key = int(2 ** rng.uniform(16, 32)), int(rng.integers(1 << 63))
    lengths = np.array(tile_lengths(common), np.int64)
    if INDEX_CODECS[index].kept == "random":
        positions, counts = masked_positions(index, key, keep, 0, lengths)
    else:
        kept = rng.random(common) < (2.0 if index == "all" else rng.random())
        positions = np.flatnonzero(kept).astype(np.uint32)
        counts = np.bincount(positions >> 16, minlength=len(lengths)).astype(np.int64)
        keep, key = 0, 0
    differences = rng.normal(0, 0.02, len(positions)).astype(np.float32)
    chunk, _ = encode_term_chunk(codec, positions, differences, counts, common, np.float32(factor))
    scaling = codec.scaling
    kind, scale = ("", 0.0) if scaling is None else (scaling.kind, float(np.float32(scaling.scale)))
    term = Term(index, values, factor, sum(chunk.counts), NOWHERE, keep, key, codec.shift, kind, scale)
    blob = writer.chunked_blob(term_layout(term, common))
    blob.append(chunk)
    term = replace(term, blob=blob.close())
    return term if scaling is None or scaling.kind == "tensor" else replace(term, lines=writer.plain_blob(pack_stream(scaling.raw)))


def write_factors(draw: Draw, writer: PackWriter, shape: tuple[int, int], factor: float, rng: np.random.Generator) -> Term:
    """A term of factors."""
    rank, bits = draw(st.integers(1, min(5, *shape))), draw(st.sampled_from([2, 4, 8]))
    left, right = (rng.integers(-(1 << bits - 1), 1 << bits - 1, (rank, count)).astype(np.int8) for count in shape)
    scales = rng.normal(0, 0.1, (2, rank)).astype(np.float32)
    made = Factors.of_codes(left, right, scales, bits)
    return replace(made.term(shape[0] * shape[1], writer.plain_blob(made.stored())), factor=factor)


def drawn_base(draw: Draw, rng: np.random.Generator) -> Tensor:
    """A tensor of one chunk, some of whose elements are any bits."""
    small = st.tuples(st.integers(2, 40), st.integers(1, 50))
    shape: tuple[int, ...] = draw(st.one_of(small, st.sampled_from([(300,), (3, 22_001), (2, 3, 70), (2, 1, 3, 12_000)])))
    tensor = cast(rng.normal(0, 1, shape), draw(st.sampled_from(FLOATS)))
    for place in rng.integers(0, tensor.bits.size, 20):
        tensor = edited(tensor, int(place), np.frombuffer(rng.bytes(8), tensor.bits.dtype)[0])
    return tensor


def write_pack(draw: Draw, path: Path, old: Tensor, rng: np.random.Generator) -> Path:
    """A pack of random terms of one tensor `w`; the digest that it states of the result is a guess."""
    rows, rest = old.shape[0] + draw(st.sampled_from([-1, 0, 0, 1])), old.shape[1:]
    kind = {-1: "shrunk", 0: "delta", 1: "grown"}[rows - old.shape[0]]
    source, target = BY_NAME[old.dtype], BY_NAME[draw(st.sampled_from([old.dtype, *FLOATS]))]
    digest = root_digest(old.dtype, old.shape, [chunk_digest(old.raw)])
    with open_pack_writer(path, force=True) as writer:
        common = (min(rows, old.shape[0]), *rest)
        terms = tuple(write_term(draw, writer, common, rng) for _ in range(draw(st.integers(1, 3))))
        stored = None
        if kind == "grown":
            own = np.frombuffer(rng.bytes(int(np.prod(rest)) * target.itemsize), target.storage)
            blob = writer.chunked_blob(stored_layout(len(own)))
            blob.append(encode_stored_chunk(own))
            stored = blob.close()
        base = BaseRef("w", source, old.shape, digest)
        entry = Entry("w", kind, target, (rows, *rest), "0" * 32, base, terms, stored)
        total = fingerprint([("w", target.name, entry.shape, entry.digest)])
        required = tuple(sorted(frozenset().union(*(term.features for term in terms))))
        named = fingerprint([("w", source.name, old.shape, digest)])
        writer.finish(Index(named, 1, total, 1, entry.nbytes, {}, (entry,), None, "test", required))
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_random_terms(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Alone, under weights, with another factor, and two packs added up; in compiled loops and in those of numpy."""
    folder, rng = tmp_path_factory.mktemp("terms"), np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    base = {"w": drawn_base(data.draw, rng)}
    source, out = write_file(folder / "base.safetensors", base), folder / "out.safetensors"
    packs = [write_pack(data.draw, folder / f"{name}.dpk", base["w"], rng) for name in "ab"]
    spec = reference_decoder()
    in_numpy = mock.patch.object(kernels, "active", lambda: kernels_in_numpy)
    with in_numpy if data.draw(st.booleans()) else contextlib.nullcontext():
        # A pack of several sparse terms is taken for a merged one, which nobody can rescale.
        sparse = [term["values"] for term in spec.read_pack(packs[0])["index"]["tensors"][0]["terms"] if term["values"] != "factors"]
        for weight, factor in ((NOT_ONE, None), (0.0, None), (-1e30, None), (1.5, 7.25 if len(sparse) < 2 else None)):
            deltapack.apply(source, packs[0], out, weight=weight, rescale=factor, force=True)
            assert read_file(out) == decode_by_spec(base, packs[0], weight=weight, factor=factor)
        weights, given = [0.7, -1.3], {"w": (base["w"].dtype, base["w"].shape, base["w"].raw)}
        try:
            expected = spec.restore_several(packs, given, weights=weights)
        except spec.Conflict:
            with pytest.raises(deltapack.DeltapackError):
                deltapack.merge(source, packs, out, weights=weights, force=True)
        else:
            deltapack.merge(source, packs, out, weights=weights, force=True)
            assert {name: (tensor.dtype, tensor.shape, tensor.raw) for name, tensor in read_file(out).items()} == expected
