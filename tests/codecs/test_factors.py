"""Factors to a blob and back, chunk by chunk, and blobs that lie."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.builders import add_by_hand, random_tensor, whole
from support.factor_packs import factors_by_hand
from support.small_packs import digest_of, index_of

from deltapack.codecs import factors as factors_module
from deltapack.codecs.adding import OneTerm, add_terms
from deltapack.codecs.at_hand import AtHand
from deltapack.codecs.chunk import add_term_chunk, decode_term_chunk, load_term_chunks, term_chunks
from deltapack.codecs.factors import FactorChunks, Factors, FactorShape
from deltapack.dtypes import BY_NAME
from deltapack.errors import ChecksumError, DeltapackError, FormatError, LimitError
from deltapack.format.digest import CHUNK
from deltapack.format.features import features_of
from deltapack.format.frames import compress_frame
from deltapack.format.index import BaseRef, BlobRef, Entry, Term
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.kernels.buffers import Buffers

F32 = BY_NAME["f32"]
TWO = np.float32(2)


def some_factors(rows: int, columns: int, rank: int, bits: int, seed: int = 0) -> Factors:
    rng, top = np.random.default_rng(seed), 1 << bits - 1
    left, right = (rng.integers(-top, top, (rank, count)).astype(np.int8) for count in (rows, columns))
    return Factors.of_codes(left, right, rng.normal(0, 0.1, (2, rank)).astype(np.float32), bits)


def entry_of(rows: int, columns: int, *terms: Term, name: str = "a") -> Entry:
    base = BaseRef(name, F32, (rows, columns), digest_of("base" + name))
    return Entry(name, "delta", F32, (rows, columns), digest_of(name), base=base, terms=terms)


def write_factors(path: Path, shape: FactorShape, stored: bytes, count: int = 1, **changed: Any) -> Path:
    with open_pack_writer(path, force=True) as writer:
        entries = [_entry(writer, shape, stored, f"a{number}", changed) for number in range(count)]
        writer.finish(replace(index_of(entries), required=features_of(entries)))
    return path


def _entry(writer: PackWriter, shape: FactorShape, stored: bytes, name: str, changed: dict[str, Any]) -> Entry:
    term = Term("all", "factors", 1.0, shape.rows * shape.columns, writer.plain_blob(stored), rank=shape.rank, bits=shape.bits)
    entry = entry_of(shape.rows, shape.columns, replace(term, **changed), name=name)
    return replace(entry, digests=writer.plain_blob(bytes(entry.digests_length))) if entry.needs_digests else entry


@contextmanager
def opened(path: Path) -> Iterator[list[FactorChunks]]:
    with PackReader(path) as reader:
        found = [term_chunks(reader, entry, term) for entry in reader.index.entries for term in entry.terms]
        assert all(isinstance(chunks, FactorChunks) for chunks in found)
        yield [chunks for chunks in found if isinstance(chunks, FactorChunks)]


def decoded(chunks: FactorChunks, factor: np.float32 = TWO) -> NDArray[np.float32]:
    parts = [decode_term_chunk(chunks, chunks.term, chunk, factor) for chunk in range(chunks.layout.chunks)]
    for chunk, part in enumerate(parts):
        assert part.positions.tolist() == list(range(chunks.layout.chunk_length(chunk)))
    return np.concatenate([part.values.copy() for part in parts])


def by_hand(factors: Factors, factor: float = 2.0) -> NDArray[np.float32]:
    shape = factors.shape
    left, right = factors_by_hand(factors.raw(), shape.rows, shape.columns, shape.rank, shape.bits, factor)
    total = left[0][:, None] * right[0]
    for u, v in zip(left[1:], right[1:], strict=True):
        total = total + u[:, None] * v
    flat: NDArray[np.float32] = total.reshape(-1)
    return flat


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(0, 1000))
def test_round_trip(tmp_path: Path, rows: int, columns: int, rank: int, bits: int, seed: int) -> None:
    factors = some_factors(rows, columns, min(rank, rows, columns), bits, seed)
    again = Factors.parse(factors.raw(), factors.shape)
    assert again.raw() == factors.raw()
    assert len(factors.raw()) == factors.shape.raw_bytes == factors.nbytes
    with opened(write_factors(tmp_path / "a.dpk", factors.shape, factors.stored())) as (chunks,):
        assert decoded(chunks).tobytes() == by_hand(factors).tobytes()


@pytest.mark.parametrize(
    ("columns", "bits"), [(1, 2), (3, 4), (3, 2), (1000, 8), (1001, 2), (CHUNK - 1, 4), (CHUNK, 2), (CHUNK + 1, 2), (CHUNK + 5, 8)]
)
def test_chunks_begin_and_end_in_rows(tmp_path: Path, columns: int, bits: int) -> None:
    rows = CHUNK // columns + 1
    factors = some_factors(rows, columns, min(rows, columns, 3), bits)
    elements = random_tensor(0, (rows * columns,), "bf16").bits
    total = by_hand(factors)
    expected = add_by_hand(whole("bf16", elements), np.arange(len(total)), np.float32(0) + total, "bf16").bits
    with opened(write_factors(tmp_path / "a.dpk", factors.shape, factors.stored())) as (chunks,):
        assert chunks.layout.chunks > 1
        assert decoded(chunks).tobytes() == total.tobytes()
        for chunk in range(chunks.layout.chunks):
            part = elements[chunk * CHUNK : (chunk + 1) * CHUNK]
            add_term_chunk(chunks, chunks.term, chunk, TWO, part, BY_NAME["bf16"], Buffers().sparse(0, len(part)))
    assert elements.tobytes() == expected.tobytes()


def test_a_row_of_one_column(tmp_path: Path) -> None:
    factors = some_factors(1, 1, 1, 2)
    with opened(write_factors(tmp_path / "a.dpk", factors.shape, factors.stored())) as (chunks,):
        assert decoded(chunks).tobytes() == by_hand(factors).tobytes()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_terms_are_added_in_order(tmp_path: Path, count: int) -> None:
    shape = FactorShape(30, 20, 4, 4)
    many = [some_factors(30, 20, 4, 4, seed) for seed in range(count)]
    elements = np.random.default_rng(5).normal(0, 1, 600).astype(np.float32)
    total = np.zeros(600, np.float32)
    for factors in many:
        total += by_hand(factors)
    expected = elements + total
    terms = []
    readers = [PackReader(write_factors(tmp_path / f"{seed}.dpk", shape, factors.stored())) for seed, factors in enumerate(many)]
    for reader in readers:
        (entry,) = reader.index.entries
        terms.append(OneTerm(term_chunks(reader, entry, entry.terms[0]), entry.terms[0], TWO))
    add_terms(terms, 0, elements, F32, Buffers().scratch(600))
    assert elements.tobytes() == expected.tobytes()
    for reader in readers:
        reader.close()


def test_many_are_read_again_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = some_factors(40, 30, 2, 4)
    monkeypatch.setattr(factors_module, "_AT_HAND", AtHand(most=6 * (factors.nbytes + factors.right_bytes) + 1, least=4))
    with opened(write_factors(tmp_path / "a.dpk", factors.shape, factors.stored(), count=9)) as many:
        held = [chunks.factors() for chunks in many[:2]]
        assert many[0].factors() is held[0]
        for _ in range(2):
            assert {decoded(chunks).tobytes() for chunks in many} == {by_hand(factors).tobytes()}
        del held
        gc.collect()
        alive = [chunks for chunks in many if chunks._seen and chunks._seen[0]() is not None]
        assert len(alive) == 6
        loaded = [load_term_chunks(chunks, chunks.term) for chunks in many]
        assert [chunks.nbytes for chunks in loaded] == [factors.shape.raw_bytes] * 9
        assert [chunks.nbytes for chunks in many] == [0] * 9


def test_the_last_ones_are_kept_however_large_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = some_factors(40, 30, 2, 4)
    monkeypatch.setattr(factors_module, "_AT_HAND", AtHand(most=1, least=4))
    with opened(write_factors(tmp_path / "a.dpk", factors.shape, factors.stored(), count=9)) as many:
        for chunks in many:
            decoded(chunks)
        gc.collect()
        assert [chunks._held() is not None for chunks in many] == [False] * 5 + [True] * 4


SHAPE = FactorShape(5, 3, 2, 4)
"""Raw bytes: 16 of scales, 2 columns of 3 bytes with 4 bits unused, 2 columns of 2 bytes with 4 bits unused."""
GOOD = some_factors(5, 3, 2, 4).raw()


def spoiled(at: int, value: int) -> bytes:
    raw = bytearray(GOOD)
    raw[at] = value
    return bytes(raw)


HOSTILE: list[tuple[bytes, str, str]] = [
    (GOOD + b"\0", "R8", "stored larger"),
    (GOOD[:-1], "R10", "zstd"),
    (b"", "R10", "zstd"),
    (compress_frame(bytes(25), 3), "R10", "another size"),
    (compress_frame(bytes(27), 3), "R10", "another size"),
    (compress_frame(bytes(26), 3)[:-1], "R10", "cut"),
    (GOOD[:4] + b"\0\0\x80\x7f" + GOOD[8:], "R9", "scale of a factor is not finite"),
    (GOOD[:8] + b"\1\0\x80\xff" + GOOD[12:], "R9", "scale of a factor is not finite"),
    (spoiled(18, 0x1F), "R9", "unused bits"),
    (spoiled(21, 0x80), "R9", "unused bits"),
    (spoiled(23, 0x10), "R9", "unused bits"),
    (spoiled(25, 0xF0), "R9", "unused bits"),
]


@pytest.mark.parametrize(("stored", "rule", "message"), HOSTILE)
def test_what_is_wrong_is_refused(tmp_path: Path, stored: bytes, rule: str, message: str) -> None:
    path = write_factors(tmp_path / "a.dpk", SHAPE, stored)
    with opened(path) as (chunks,):
        for read in (lambda: decode_term_chunk(chunks, chunks.term, 0, TWO), lambda: load_term_chunks(chunks, chunks.term)):
            with pytest.raises(FormatError, match=message) as caught:
                read()
            assert (caught.value.rule, caught.value.path, caught.value.tensor) == (rule, path, "a0")


def test_a_damaged_blob(tmp_path: Path) -> None:
    path = write_factors(tmp_path / "a.dpk", SHAPE, GOOD, blob=BlobRef(64, len(GOOD), "0" * 16))
    with opened(path) as (chunks,), pytest.raises(ChecksumError, match="a blob is damaged") as caught:
        chunks.factors()
    assert (caught.value.rule, caught.value.tensor) == ("R8", "a0")


def test_more_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    shape = FactorShape(1 << 40, 1, 1, 8)
    term = Term("all", "factors", 1.0, 1 << 40, BlobRef(64, 20, "0" * 16), rank=1, bits=8)
    path = write_factors(tmp_path / "a.dpk", SHAPE, GOOD)
    with PackReader(path) as reader:
        chunks = term_chunks(reader, entry_of(shape.rows, 1, term), term)
        with pytest.raises(LimitError, match="factors are too large") as caught:
            decode_term_chunk(chunks, term, 0, TWO)
    assert (caught.value.rule, caught.value.tensor) == ("R8", "a")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.builds(lambda at, value: spoiled(at, value), st.integers(0, 25), st.integers(0, 255)))
def test_any_blob_is_refused_or_decoded(tmp_path: Path, stored: bytes) -> None:
    with opened(write_factors(tmp_path / "a.dpk", SHAPE, stored)) as (chunks,):
        try:
            found = decoded(chunks)
        except DeltapackError as error:
            assert error.tensor == "a0"
        else:
            assert len(found) == 15


def test_weights_that_overflow(tmp_path: Path) -> None:
    factors = some_factors(6, 4, 2, 8)
    with opened(write_factors(tmp_path / "a.dpk", factors.shape, factors.stored())) as (chunks,):
        found = decoded(chunks, np.float32(3e38))
        assert not np.isfinite(found).all()
        assert np.isfinite(decoded(chunks)).all()
