"""Chunks through a whole pack and back; chunks whose table and streams lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.codecs import codec_of
from support.laws import examples
from support.small_packs import CODECS, KEEP, KEY, digest_of, index_of, term_of, write_chunk

from deltapack.codecs.chunk import TermCodec, decode_term_chunk, encode_term_chunk, term_layout
from deltapack.codecs.indices import masked_positions
from deltapack.codecs.stored import decode_stored_chunk, encode_stored_chunk, stored_layout
from deltapack.dtypes import BY_NAME
from deltapack.errors import ChecksumError, DeltapackError, FormatError
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.frames import compress_frame, pack_stream
from deltapack.format.index import BaseRef, BlobRef, Entry, Term
from deltapack.format.reader import PackReader
from deltapack.format.table import Layout, tile_lengths
from deltapack.format.writer import PackWriter, StoredChunk, open_pack_writer

F32 = BY_NAME["f32"]
TWO = np.float32(2)
LENGTHS = [1, 2, 63, 64, 65, TILE - 1, TILE, TILE + 1, CHUNK - 1, CHUNK + 1]
ALL_CODECS = [
    *(codec_of("bitmap", values) for values in VALUE_CODECS),
    *(TermCodec("gaps", "int4", shift) for shift in (1, 4, 15)),
    *(codec_of(index, values) for index in INDEX_CODECS for values in ("int2", "bf16", "ternary", "uniform")),
]


def delta_entry(length: int, term: Term) -> Entry:
    base = BaseRef("a", F32, (length,), digest_of("base"))
    return Entry("a", "delta", F32, (length,), digest_of("a"), base=base, terms=(term,))


def finish(writer: PackWriter, entry: Entry) -> None:
    digests = writer.plain_blob(bytes(entry.digests_length)) if entry.needs_digests else None
    fields = {name: getattr(entry, name) for name in ("name", "kind", "dtype", "shape", "digest", "base", "terms", "stored")}
    writer.finish(index_of([Entry(**fields, digests=digests)]))


def mask(codec: TermCodec, chunk: int, length: int, density: float) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    lengths = np.array(tile_lengths(length), np.int64)
    if INDEX_CODECS[codec.index].kept == "random":
        return masked_positions(codec.index, KEY, KEEP, chunk, lengths)
    kept = np.random.default_rng(chunk).random(length) < density
    kept |= INDEX_CODECS[codec.index].kept == "all"
    positions = np.flatnonzero(kept).astype(np.uint32)
    return positions, np.bincount(positions // TILE, minlength=len(lengths)).astype(np.int64)


def read_term(path: Path, chunk: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    with PackReader(path) as reader:
        entry = reader.index.entries[0]
        term = entry.terms[0]
        blob = reader.chunked_blob(term.blob, term_layout(term, entry.common), term.nnz, "a")
        return decode_term_chunk(blob, term, chunk, TWO)


@pytest.mark.parametrize("codec", ALL_CODECS, ids=lambda codec: f"{codec.index}-{codec.values}-{codec.shift}")
@pytest.mark.parametrize("length", LENGTHS)
def test_round_trip(tmp_path: Path, codec: TermCodec, length: int) -> None:
    path, layout = tmp_path / "a.dpk", term_layout(term_of(codec, 0, BlobRef(0, 0, "")), length)
    density = 0.3 if length < CHUNK else 0.01
    expected = []
    with open_pack_writer(path, force=False) as writer:
        blob, nnz = writer.chunked_blob(layout), 0
        for chunk in range(layout.chunks):
            positions, counts = mask(codec, chunk, layout.chunk_length(chunk), density)
            differences = np.random.default_rng(chunk).normal(0, 0.01, len(positions)).astype(np.float32)
            stored, seen = encode_term_chunk(codec, positions, differences, counts, layout.chunk_length(chunk), TWO)
            blob.append(stored)
            expected.append(seen)
            nnz += len(positions)
        finish(writer, delta_entry(length, term_of(codec, nnz, blob.close())))
    for chunk, (positions, values) in enumerate(expected):
        found = read_term(path, chunk)
        assert found[0].tobytes() == positions.tobytes()
        assert found[1].tobytes() == values.tobytes()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.index}-{codec.values}-{codec.shift}")
def test_tensor_without_elements(tmp_path: Path, codec: TermCodec) -> None:
    path = tmp_path / "a.dpk"
    with open_pack_writer(path, force=False) as writer:
        term = term_of(codec, 0, writer.chunked_blob(term_layout(term_of(codec, 0, BlobRef(0, 0, "")), 0)).close())
        finish(writer, delta_entry(0, term))
    with PackReader(path) as reader:
        term = reader.index.entries[0].terms[0]
        assert reader.chunked_blob(term.blob, term_layout(term, 0), 0, "a").records == ()


def test_a_seeded_mask_costs_no_bytes() -> None:
    codec, length = TermCodec("seeded", "int4"), CHUNK
    positions, counts = mask(codec, 0, length, 0)
    chunk, _ = encode_term_chunk(codec, positions, np.ones(len(positions), np.float32), counts, length, TWO)
    assert len(chunk.streams) == 2


@pytest.mark.parametrize("dtype", sorted(BY_NAME))
@pytest.mark.parametrize("length", [1, 2, 65, CHUNK + 1])
def test_stored_round_trip(tmp_path: Path, dtype: str, length: int) -> None:
    path, found = tmp_path / "a.dpk", BY_NAME[dtype]
    raw = np.random.default_rng(length).bytes(length * found.itemsize)
    elements, layout = np.frombuffer(raw, found.storage), stored_layout(length)
    with open_pack_writer(path, force=False) as writer:
        blob = writer.chunked_blob(layout)
        for start in range(0, length, CHUNK):
            blob.append(encode_stored_chunk(elements[start : start + CHUNK]))
        finish(writer, Entry("a", "stored", found, (length,), digest_of("a"), stored=blob.close()))
    with PackReader(path) as reader:
        stored = reader.index.entries[0].stored
        assert stored is not None
        chunks = reader.chunked_blob(stored, layout, 0, "a")
        assert b"".join(decode_stored_chunk(chunks, found, chunk).tobytes() for chunk in range(layout.chunks)) == raw


def spoiled(path: Path, codec: TermCodec, chunk: StoredChunk, length: int = 20) -> Path:
    """A pack of one chunk, checksums right, whatever the chunk says."""
    with open_pack_writer(path, force=True) as writer:
        finish(writer, delta_entry(length, write_chunk(writer, codec, length, chunk)))
    return path


def stream(raw: bytes) -> tuple[bytes, int]:
    return pack_stream(raw), len(raw)


def chunk_of(counts: tuple[int, ...], *streams: tuple[bytes, int]) -> StoredChunk:
    return StoredChunk(tuple(stored for stored, _ in streams), tuple(raw for _, raw in streams), counts)


ONE_SCALE = stream(b"\x80\x3f")
GAPS, BITMAP = TermCodec("gaps", "int8"), TermCodec("bitmap", "int8")


def test_the_chunk_that_the_next_tests_spoil(tmp_path: Path) -> None:
    chunk = chunk_of((2,), stream(b"\1\2"), stream(b"\5\xff"), ONE_SCALE)
    positions, values = read_term(spoiled(tmp_path / "a.dpk", GAPS, chunk))
    assert (positions.tolist(), values.tolist()) == ([1, 4], [10, -2])


@pytest.mark.parametrize(
    ("codec", "chunk", "rule"),
    [
        (GAPS, chunk_of((2,), stream(b"\1"), stream(b"\5\5"), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2\3"), stream(b"\5\5"), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), stream(b"\5"), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), stream(b"\5\5\5"), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), stream(b"\5\5"), stream(b"")), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), stream(b"\5\5"), stream(b"\x80\x80\x3f\x3f")), "R8"),
        (GAPS, chunk_of((2,), (b"\1\2", 1), stream(b"\5\5"), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), (b"\1\2", 2**32 - 1), stream(b"\5\5"), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), (compress_frame(bytes(1 << 20), 1), 1 << 20), ONE_SCALE), "R8"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), (b"\5", 2), ONE_SCALE), "R10"),
        (GAPS, chunk_of((2,), stream(b"\1\x12"), stream(b"\5\5"), ONE_SCALE), "R9"),
        (GAPS, chunk_of((2,), stream(b"\1\xff"), stream(b"\5\5"), ONE_SCALE), "R9"),
        (GAPS, chunk_of((2,), stream(b"\1\2"), stream(b"\5\5"), stream(b"\x80\x7f")), "R9"),
        (TermCodec("gaps", "int8", 16 - 1), chunk_of((2,), stream(b"\1\2"), stream(b"\5\5"), ONE_SCALE), "R8"),
        (BITMAP, chunk_of((2,), stream(b"\1\2"), stream(b"\5\5"), ONE_SCALE), "R8"),
        (BITMAP, chunk_of((2,), stream(b"\1\2\0\0"), stream(b"\5\5"), ONE_SCALE), "R8"),
        (BITMAP, chunk_of((2,), stream(b"\1\2\1"), stream(b"\5\5"), ONE_SCALE), "R9"),
        (BITMAP, chunk_of((2,), stream(b"\1\0\x10"), stream(b"\5\5"), ONE_SCALE), "R9"),
        (TermCodec("all", "int8"), chunk_of((20,), stream(bytes(19)), ONE_SCALE), "R8"),
        (TermCodec("seeded", "int8"), chunk_of((20,), stream(bytes(20)), ONE_SCALE), "R9"),
        (TermCodec("seeded", "int8"), chunk_of((0,), stream(b""), stream(b"")), "R9"),
        (TermCodec("bitmap", "sign"), chunk_of((2,), stream(b"\3\0\0"), stream(b"\4"), ONE_SCALE), "R9"),
        (TermCodec("bitmap", "f16"), chunk_of((2,), stream(b"\3\0\0"), stream(b"\0\0\0\x7c")), "R9"),
    ],
)
def test_hostile_chunks(tmp_path: Path, codec: TermCodec, chunk: StoredChunk, rule: str) -> None:
    path = tmp_path / "a.dpk"
    with pytest.raises(DeltapackError) as caught:
        read_term(spoiled(path, codec, chunk))
    assert caught.value.rule == rule
    assert (caught.value.path, caught.value.tensor) == (path, "a")


def test_a_frame_of_another_size_than_the_table_says(tmp_path: Path) -> None:
    """The raw length is what the codec needs; the frame would give a mebibyte."""
    length = 5000
    bomb = compress_frame(bytes(1 << 20), 1)
    chunk = chunk_of((length,), (bomb, length), stream(b"\x80" * 40 + b"\x3f" * 40))
    with pytest.raises(FormatError) as caught:
        read_term(spoiled(tmp_path / "a.dpk", TermCodec("all", "int8"), chunk, length))
    assert caught.value.rule == "R10"


streams = st.builds(stream, st.binary(max_size=12)) | st.tuples(st.binary(max_size=6), st.integers(0, 2**32 - 1))


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(CODECS), st.integers(0, 20), st.lists(streams, min_size=3, max_size=3))
def test_any_chunk_is_refused_or_decoded(tmp_path: Path, codec: TermCodec, count: int, found: list[tuple[bytes, int]]) -> None:
    count = 20 if codec.index == "all" else count
    term = term_of(codec, count, BlobRef(0, 0, ""))
    chunk = chunk_of((count,), *found[: len(term.streams)])
    try:
        positions, values = read_term(spoiled(tmp_path / "a.dpk", codec, chunk))
    except DeltapackError as error:
        assert error.rule in ("R8", "R9", "R10")
    else:
        assert len(positions) == len(values) == count
        assert np.all(np.diff(positions.astype(np.int64)) > 0)
        assert not count or positions[-1] < 20


@pytest.mark.parametrize("at", ["table", "payload"])
def test_checksums_come_first(tmp_path: Path, at: str) -> None:
    path = spoiled(tmp_path / "a.dpk", GAPS, chunk_of((2,), stream(b"\1\2"), stream(b"\5\5"), ONE_SCALE))
    layout = Layout(20, 3, has_counts=True)
    data = bytearray(path.read_bytes())
    struct.pack_into("<B", data, 64 + (0 if at == "table" else layout.table_bytes), 0xEE)
    path.write_bytes(data)
    with pytest.raises(ChecksumError) as caught:
        read_term(path)
    assert caught.value.rule == "R8"


def test_table_larger_than_its_blob(tmp_path: Path) -> None:
    path = tmp_path / "a.dpk"
    with open_pack_writer(path, force=False) as writer:
        finish(writer, delta_entry(20, term_of(GAPS, 2, writer.plain_blob(b"x" * 8))))
    with pytest.raises(FormatError, match="table") as caught:
        read_term(path)
    assert caught.value.rule == "R8"
