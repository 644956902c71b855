"""Hashes, against values published with xxHash and against a second formulation."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import xxhash

from deltapack.format.digest import CHUNK, TILE, TILES_PER_CHUNK, chunk_count, chunk_digest, fingerprint, hash64, root_digest


def test_sizes() -> None:
    assert (TILE, CHUNK) == (65_536, 1_048_576)
    assert TILE * TILES_PER_CHUNK == CHUNK


@pytest.mark.parametrize(("numel", "chunks"), [(0, 0), (1, 1), (CHUNK - 1, 1), (CHUNK, 1), (CHUNK + 1, 2), (1 << 48, 1 << 28)])
def test_chunk_count(numel: int, chunks: int) -> None:
    assert chunk_count(numel) == chunks


def test_published_values_of_the_empty_input() -> None:
    assert hash64(b"") == 0x2D06800538D394C2
    assert chunk_digest(b"").hex() == "99aa06d3014798d86001c324468d497f"


def test_arrays_and_their_bytes_hash_alike() -> None:
    elements = np.arange(1000, dtype="<f4")
    assert chunk_digest(elements) == chunk_digest(elements.tobytes())
    assert hash64(elements) == hash64(elements.tobytes())


@pytest.mark.parametrize(("shape", "dims"), [((), b""), ((7,), b"7"), ((0, 12, 3), b"0,12,3")])
def test_root_digest_covers_dtype_shape_and_chunks(shape: tuple[int, ...], dims: bytes) -> None:
    chunks = [chunk_digest(b"one"), chunk_digest(b"two")]
    expected = xxhash.xxh3_128(b"bf16\0" + dims + b"\0" + chunks[0] + chunks[1]).hexdigest()
    assert root_digest("bf16", shape, chunks) == expected
    assert len({expected, root_digest("f16", shape, chunks), root_digest("bf16", (*shape, 1), chunks)}) == 3


def test_fingerprint_does_not_depend_on_the_order() -> None:
    rows = [("b", "f32", (2, 3), "0" * 32), ("a", "u8", (), "1" * 32), ("é", "u8", (0,), "2" * 32)]
    lines = b"a\0u8\0\0" + b"1" * 32 + b"\nb\0f32\0" + b"2,3\0" + b"0" * 32 + b"\n"
    lines += "é\0u8\0".encode() + b"0\0" + b"2" * 32 + b"\n"
    assert fingerprint(rows) == fingerprint(rows[::-1]) == hashlib.sha256(lines).hexdigest()


def test_fingerprint_sorts_by_utf8_bytes() -> None:
    rows = [("\uffff", "u8", (), "0" * 32), ("\U00010000", "u8", (), "1" * 32)]
    lines = b"".join(f"{name}\0u8\0\0{digest}\n".encode() for name, _, _, digest in rows)
    assert fingerprint(reversed(rows)) == hashlib.sha256(lines).hexdigest()
