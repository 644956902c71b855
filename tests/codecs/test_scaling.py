"""Scales of rows and columns through a pack, with dropped rows, for every codec that may have them; and bytes that lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.small_packs import KEEP, KEY, digest_of, index_of, term_of

from deltapack.codecs.chunk import (
    TermCodec,
    add_term_chunk,
    decode_term_chunk,
    encode_term_chunk,
    load_term_chunks,
    term_chunks,
    term_layout,
)
from deltapack.codecs.indices import masked_positions
from deltapack.codecs.scaling import Scaling, nearest_lines
from deltapack.dtypes import BY_NAME
from deltapack.errors import FormatError
from deltapack.format.codecs import INDEX_CODECS, MOST_LINES, VALUE_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.frames import pack_stream
from deltapack.format.index import BaseRef, BlobRef, Entry
from deltapack.format.reader import PackReader
from deltapack.format.table import tile_lengths
from deltapack.format.writer import open_pack_writer
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Sparse
from deltapack.kernels.reference.positions import tile_counts
from deltapack.kernels.reference.scaling import in_kept_rows, scales_at

SCALED = tuple(row.name for row in VALUE_CODECS.values() if row.scaled)
BF16, F32 = BY_NAME["bf16"], BY_NAME["f32"]
TWO = np.float32(2)
SHAPES = ((5, 9), (300, 300), (3, TILE + 5))


def scaling_of(kind: str, shape: tuple[int, ...], rows: Sequence[int] | None = None) -> Scaling:
    """Random bytes, the extremes among them, every third row dropped."""
    rng, width = np.random.default_rng(0), shape[-1]
    count = int(np.prod(shape)) // width
    own = rng.integers(100, 150, count).astype(np.uint8)
    own[:: 3 if count > 3 else 2] = 0
    own[-1] = 255
    columns = rng.integers(100, 150, width).astype(np.uint8)
    columns[:2] = 1, 255
    if rows is not None:
        own = np.array(rows, np.uint8)
    if kind == "tensor":
        return Scaling("tensor", 0.01, threshold=0.7)
    return Scaling("rows", 0.01, own, width=width, threshold=0.7) if kind == "rows" else Scaling("outer", 0.01, own, columns, width, 0.7)


def mask(codec: TermCodec, chunk: int, length: int, start: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    if INDEX_CODECS[codec.index].kept == "random":
        return masked_positions(codec.index, KEY, KEEP, chunk, np.array(tile_lengths(length), np.int64))
    kept = np.ones(length, np.bool_) if codec.index == "all" else np.random.default_rng(chunk).random(length) < 0.3
    positions = np.flatnonzero(kept).astype(np.uint32)
    return positions, tile_counts(positions, length)


def write(path: Path, codec: TermCodec, shape: tuple[int, ...], stored: bytes | None = None) -> list[Sparse]:
    """Write a pack of one tensor and return what each chunk keeps; `stored` takes the place of the scales of rows and columns."""
    numel, seen = int(np.prod(shape)), []
    term = term_of(codec, 0, BlobRef(0, 0, ""))
    with open_pack_writer(path, force=True) as writer:
        blob, nnz = writer.chunked_blob(term_layout(term, numel)), 0
        for chunk, start in enumerate(range(0, numel, CHUNK)):
            length = min(CHUNK, numel - start)
            positions, counts = mask(codec, chunk, length, start)
            differences = np.random.default_rng(chunk).normal(0, 0.01, len(positions)).astype(np.float32)
            own, found = encode_term_chunk(codec, positions, differences, counts, length, TWO, start)
            blob.append(own)
            nnz += sum(own.counts)
            seen.append(found)
        term = replace(term, nnz=nnz, blob=blob.close())
        if codec.scaling is not None and codec.scaling.raw:
            term = replace(term, lines=writer.plain_blob(pack_stream(codec.scaling.raw) if stored is None else stored))
        base = BaseRef("a", F32, shape, digest_of("base"))
        entry = Entry("a", "delta", F32, shape, digest_of("a"), base=base, terms=(term,))
        if entry.needs_digests:
            entry = replace(entry, digests=writer.plain_blob(bytes(entry.digests_length)))
        writer.finish(index_of([entry]))
    return seen


CASES = [("stratified", 0, values) for values in SCALED] + [(index, 0, "ternary") for index in INDEX_CODECS] + [("gaps", 4, "sign")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["tensor", "rows", "outer"])
@pytest.mark.parametrize(("index", "shift", "values"), CASES)
def test_round_trip(tmp_path: Path, index: str, shift: int, values: str, kind: str, shape: tuple[int, ...]) -> None:
    """Decoded from the disk and from memory, and added to elements of a type with a loop of its own and of one without."""
    codec = TermCodec(index, values, shift, scaling_of(kind, shape))
    path = tmp_path / "a.dpk"
    seen = write(path, codec, shape)
    with PackReader(path) as reader:
        (entry,) = reader.index.entries
        (term,) = entry.terms
        chunks = term_chunks(reader, entry, term)
        for blob in (chunks, load_term_chunks(chunks, term)):
            for chunk, wanted in enumerate(seen):
                found = decode_term_chunk(blob, term, chunk, TWO)
                assert found.positions.tobytes() == wanted.positions.tobytes()
                assert found.values.tobytes() == wanted.values.tobytes()
                for name in ("bf16", "f64"):
                    elements = np.ones(blob.layout.chunk_length(chunk), BY_NAME[name].storage)
                    touched = elements.copy()
                    add_term_chunk(blob, term, chunk, TWO, touched, BY_NAME[name], Buffers().sparse(0, len(elements)))
                    touched[wanted.positions] = elements[wanted.positions]
                    assert touched.tobytes() == elements.tobytes()
    if codec.scaling is not None and codec.scaling.drops:
        assert all(in_kept_rows(part.positions, chunk * CHUNK, codec.scaling.lines).all() for chunk, part in enumerate(seen))
    if values == "ternary":
        assert all((part.values != 0).all() for part in seen)


@pytest.mark.parametrize(("kind", "values"), [("outer", "ternary"), ("rows", "uniform")])
def test_several_chunks(tmp_path: Path, kind: str, values: str) -> None:
    """Rows go on from chunk to chunk."""
    test_round_trip(tmp_path, "stratified", 0, values, kind, (1500, 1000))


@pytest.mark.parametrize("kind", ["rows", "outer"])
@pytest.mark.parametrize("index", INDEX_CODECS)
def test_all_rows_dropped(tmp_path: Path, kind: str, index: str) -> None:
    codec = TermCodec(index, "sign", 0, scaling_of(kind, (5, 9), rows=[0] * 5))
    seen = write(tmp_path / "a.dpk", codec, (5, 9))
    assert [len(part.positions) for part in seen] == [0]
    with PackReader(tmp_path / "a.dpk") as reader:
        (entry,) = reader.index.entries
        assert entry.terms[0].nnz == 0
        found = decode_term_chunk(term_chunks(reader, entry, entry.terms[0]), entry.terms[0], 0, TWO)
        assert len(found.positions) == len(found.values) == 0


def read(path: Path) -> Sparse:
    with PackReader(path) as reader:
        (entry,) = reader.index.entries
        return decode_term_chunk(term_chunks(reader, entry, entry.terms[0]), entry.terms[0], 0, TWO)


@pytest.mark.parametrize(
    ("kind", "stored", "what"),
    [
        ("outer", bytes([128] * 5 + [128] * 8 + [0]), r"scale of a column is 0.*R9"),
        ("outer", bytes([128] * 13), r"R10"),
        ("outer", bytes([128] * 15), r"larger than they are.*R8"),
        ("rows", bytes([128] * 4), r"R10"),
        ("rows", bytes([128] * 6), r"larger than they are.*R8"),
    ],
)
def test_scales_that_lie(tmp_path: Path, kind: str, stored: bytes, what: str) -> None:
    path = tmp_path / "a.dpk"
    write(path, TermCodec("seeded", "sign", 0, scaling_of(kind, (5, 9), rows=[128] * 5)), (5, 9), stored)
    with pytest.raises(FormatError, match=rf"a\.dpk: tensor 'a': .*{what}"):
        read(path)


@pytest.mark.parametrize("index", INDEX_CODECS)
def test_another_row_is_dropped_than_was(tmp_path: Path, index: str) -> None:
    """Elements of a mask are then more or fewer than were counted; a stored position must not be in such a row."""
    path = tmp_path / "a.dpk"
    write(path, TermCodec(index, "sign", 0, scaling_of("rows", (5, 9), rows=[128, 128, 0, 128, 128])), (5, 9), bytes([0, 0, 128, 128, 128]))
    with pytest.raises(FormatError, match=r"a\.dpk: tensor 'a': .*(another number|is dropped).*R9"):
        read(path)


def test_more_rows_than_scales_are_held_for(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"{MOST_LINES}.*R6"), open_pack_writer(tmp_path / "a.dpk", force=True) as writer:
        shape = (MOST_LINES + 1, 1)
        term = replace(
            term_of(TermCodec("all", "sign", 0, scaling_of("rows", (5, 9))), 0, writer.plain_blob(b"")), lines=writer.plain_blob(b"x")
        )
        base = BaseRef("a", F32, shape, digest_of("base"))
        entry = Entry("a", "delta", F32, shape, digest_of("a"), base=base, terms=(term,))
        entry = replace(entry, digests=writer.plain_blob(bytes(entry.digests_length)))
        writer.finish(index_of([entry]))


@pytest.mark.parametrize("kind", ["tensor", "rows", "outer"])
def test_scales_are_those_of_the_page(kind: str) -> None:
    """M[b mod 8] * 2^((b div 8) - 16), each f32 nearest to a power of two."""
    scaling = scaling_of(kind, (5, 9))
    found = scales_at(np.arange(45, dtype=np.uint32), 0, scaling.lines)

    def number(byte: int) -> np.float32:
        return np.float32(np.float32(2.0 ** (byte % 8 / 8)) * np.float32(2.0 ** (byte // 8 - 16))) if byte else np.float32(0)

    for place, scale in enumerate(found):
        expected = np.float32(0.01)
        if kind == "rows":
            expected = number(int(scaling.rows[place // 9])) * expected
        elif kind == "outer":
            expected = (number(int(scaling.rows[place // 9])) * number(int(scaling.columns[place % 9]))) * expected
        assert scale == expected


def test_nearest_bytes() -> None:
    every = np.arange(1, 256)
    exact = np.exp2(every / 8 - 16)
    assert nearest_lines(exact).tolist() == every.tolist()
    assert nearest_lines(exact * 1.04).tolist() == every.tolist()
    assert nearest_lines(np.array([0.0, 1e-30, 1e30, np.inf])).tolist() == [1, 1, 255, 255]


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "scale", "threshold"),
    [
        ("tensor", [1], [], 1.0, 1.0),
        ("rows", [], [], 1.0, 1.0),
        ("rows", [1], [1], 1.0, 1.0),
        ("outer", [1], [1, 2], 1.0, 1.0),
        ("outer", [1], [1, 0, 3], 1.0, 1.0),
        ("tensor", [], [], float("inf"), 1.0),
        ("tensor", [], [], 1.0, 0.0),
    ],
)
def test_no_such_scaling(kind: str, rows: list[int], columns: list[int], scale: float, threshold: float) -> None:
    with pytest.raises(ValueError, match="no such scaling"):
        Scaling(kind, scale, np.array(rows, np.uint8), np.array(columns, np.uint8), 3, threshold)  # type: ignore[arg-type]
