"""Index codecs: laws on any mask, and streams made by an enemy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.laws import examples

from deltapack.codecs.indices import (
    STORED,
    best_index,
    decode_positions,
    encode_bitmap,
    encode_gaps,
    encode_positions,
    index_raw_bounds,
)
from deltapack.errors import FormatError
from deltapack.format.codecs import INDEX_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.frames import pack_stream
from deltapack.format.index import BlobRef, Term
from deltapack.format.table import tile_lengths

LENGTHS = [1, 2, 63, 64, 65, TILE - 1, TILE, TILE + 1, CHUNK - 1, CHUNK]
Positions = NDArray[np.uint32]
Counts = NDArray[np.int64]


def lengths_of(length: int) -> Counts:
    return np.array(tile_lengths(length), np.int64)


def counts_of(positions: Positions, length: int) -> Counts:
    return np.bincount(positions // TILE, minlength=len(tile_lengths(length))).astype(np.int64)


def decode(index: str, raw: bytes, counts: Counts, lengths: Counts, shift: int = 0) -> Positions:
    return decode_positions(Term(index, "f32", 1.0, 0, BlobRef(0, 0, ""), shift=shift), raw, 0, counts, lengths)


def check_round_trip(positions: Positions, length: int, shift: int) -> None:
    counts, lengths = counts_of(positions, length), lengths_of(length)
    raw = encode_gaps(positions, counts, shift)
    least, most = index_raw_bounds("gaps", shift, counts, lengths)
    assert least <= len(raw) <= most
    found = decode("gaps", raw, counts, lengths, shift)
    assert found.dtype == np.uint32
    assert np.array_equal(found, positions)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shift", [0, 1, 3, 8, 15])
def test_gaps_of_edge_masks(length: int, shift: int) -> None:
    last = length - 1
    every_tile = np.array([start for start in range(0, length, TILE)], np.uint32)
    masks = [
        np.zeros(0, np.uint32),
        np.array([0], np.uint32),
        np.array([last], np.uint32),
        np.unique(np.array([0, last], np.uint32)),
        every_tile,
        np.minimum(every_tile + TILE - 1, last).astype(np.uint32),
        np.arange(0, length, 255, dtype=np.uint32),
        np.arange(0, length, 256, dtype=np.uint32),
        np.arange(last % 257, length, 257, dtype=np.uint32),
    ]
    if length <= TILE + 1:
        masks.append(np.arange(length, dtype=np.uint32))
    for positions in masks:
        check_round_trip(positions, length, shift)


@examples(60)
@given(st.sampled_from(LENGTHS[:-2]), st.integers(0, 15), st.data())
def test_gaps_of_any_mask(length: int, shift: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, length - 1), max_size=60))
    check_round_trip(np.array(sorted(chosen), np.uint32), length, shift)


@pytest.mark.parametrize("shift", range(16))
@pytest.mark.parametrize("density", [0.5, 0.01, 0.0005])
def test_gaps_of_random_masks(shift: int, density: float) -> None:
    length = 5 * TILE + 77
    positions = np.flatnonzero(np.random.default_rng(shift).random(length) < density).astype(np.uint32)
    check_round_trip(positions, length, shift)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_bitmap_round_trip(length: int, density: float) -> None:
    positions = np.flatnonzero(np.random.default_rng(length).random(length) < density).astype(np.uint32)
    raw = encode_bitmap(positions, length)
    assert index_raw_bounds("bitmap", 0, counts_of(positions, length), lengths_of(length)) == (len(raw), len(raw))
    assert np.array_equal(decode("bitmap", raw, counts_of(positions, length), lengths_of(length)), positions)


def test_what_streams_mean_is_known_of_every_codec_that_stores_one() -> None:
    assert set(STORED) == {row.name for row in INDEX_CODECS.values() if row.kept == "stored"}
    for row in INDEX_CODECS.values():
        raw = encode_positions(row.name, 0, np.array([1], np.uint32), np.array([1], np.int64), 9)
        assert (raw is None) == (row.kept != "stored")


@pytest.mark.parametrize("index", STORED)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("density", [0.0, 0.001, 0.3, 1.0])
def test_every_stored_index_round_trips(index: str, length: int, density: float) -> None:
    positions = np.flatnonzero(np.random.default_rng(length).random(length) < density).astype(np.uint32)
    counts, lengths = counts_of(positions, length), lengths_of(length)
    raw = encode_positions(index, 0, positions, counts, length)
    assert raw is not None
    least, most = index_raw_bounds(index, 0, counts, lengths)
    assert least <= len(raw) <= most
    assert np.array_equal(decode(index, raw, counts, lengths), positions)
    if length > 1 and 0 < len(positions) < length:
        with pytest.raises(FormatError) as caught:
            decode(index, raw, counts + np.eye(len(counts), dtype=np.int64)[0] * (1 if counts[0] < lengths[0] else -1), lengths)
        assert caught.value.rule == "R9"


def test_bytes_are_those_of_the_specification() -> None:
    positions, counts = np.array([0, 2, 300, 65_536 + 255], np.uint32), np.array([3, 1], np.int64)
    assert encode_gaps(positions, counts, 0) == bytes([0, 1, 255, 42, 255, 0])
    # Rice, k = 2: gaps 5 and 2 are low bits 01, 10 and unary 01, 1.
    assert encode_gaps(np.array([5, 8], np.uint32), np.array([2], np.int64), 2) == bytes([0b1001, 0b110])
    assert encode_bitmap(np.array([0, 9], np.uint32), 10) == bytes([1, 2])


@examples(400)
@given(
    st.binary(max_size=40),
    st.integers(0, 15),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.integers(1, TILE),
)
def test_any_gap_stream_is_refused_or_stays_in_its_tiles(raw: bytes, shift: int, kept: list[int], last: int) -> None:
    lengths = np.array([TILE] * (len(kept) - 1) + [last], np.int64)
    counts = np.minimum(np.array(kept, np.int64), lengths)
    try:
        positions = decode("gaps", raw, counts, lengths, shift)
    except FormatError as error:
        assert error.rule == "R9"
        return
    assert np.all(np.diff(positions.astype(np.int64)) > 0)
    assert np.array_equal(np.bincount(positions // TILE, minlength=len(counts)), counts)
    assert not len(positions) or positions[-1] < lengths.sum()
    # There is one stream for a mask, so what was accepted is what the encoder writes.
    assert encode_gaps(positions, counts, shift) == raw


@examples(200)
@given(st.binary(min_size=1, max_size=9), st.integers(0, 7), st.integers(-1, 1))
def test_any_bitmap_is_refused_or_right(raw: bytes, unused: int, wrong: int) -> None:
    length = 8 * len(raw) - unused
    ones = sum(byte.bit_count() for byte in raw)
    counts, lengths = np.array([max(0, ones + wrong)], np.int64), lengths_of(length)
    try:
        positions = decode("bitmap", raw, counts, lengths)
    except FormatError as error:
        assert error.rule == "R9"
        assert wrong or int.from_bytes(raw, "little") >> length
    else:
        assert encode_bitmap(positions, length) == raw
        assert len(positions) == counts[0]


@pytest.mark.parametrize(
    ("raw", "counts", "lengths", "shift"),
    [
        (b"\xff", [1], [300], 0),
        (b"\0\xff", [1], [300], 0),
        (b"\xff\0", [1], [255], 0),
        (b"\0\0", [1], [300], 0),
        (b"\0", [2], [300], 0),
        (b"\xff" * 300, [1], [TILE], 0),
        (b"\x05", [1], [5], 0),
        (b"\x00\x00", [1, 1], [TILE, 0], 0),
        (b"\xfe\xff\x01", [1], [254], 0),
        (bytes([0b01, 0b100]), [1], [9], 2),
        (bytes([0b10_01, 0b1]), [1], [300], 2),
        (bytes([0b01, 0b11]), [1], [300], 2),
        (bytes([0b01, 0b1, 0]), [1], [300], 2),
        (bytes([0b01, 0]), [1], [300], 2),
        (b"", [1], [300], 2),
        (b"\x01", [1], [300], 2),
        (b"\0", [0], [300], 2),
        (bytes([0xFF, 0x7F, 0b1]), [1], [32767], 15),
    ],
)
def test_hostile_gap_streams(raw: bytes, counts: list[int], lengths: list[int], shift: int) -> None:
    with pytest.raises(FormatError) as caught:
        decode("gaps", raw, np.array(counts), np.array(lengths), shift)
    assert caught.value.rule == "R9"


def test_bitmap_counts_belong_to_their_tiles() -> None:
    raw = encode_bitmap(np.array([0, 1, TILE], np.uint32), 2 * TILE)
    lengths = lengths_of(2 * TILE)
    assert decode("bitmap", raw, np.array([2, 1]), lengths).tolist() == [0, 1, TILE]
    with pytest.raises(FormatError):
        decode("bitmap", raw, np.array([1, 2]), lengths)


def entropy_bytes(density: float, positions: int, length: int) -> float:
    """The information in a mask that keeps `positions` of `length` elements, drawn at this density."""
    return -(positions * math.log2(density) + (length - positions) * math.log2(1 - density)) / 8


@pytest.mark.parametrize("density", [0.6, 0.5, 0.35, 0.22, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001])
def test_stored_indices_are_within_two_percent_of_the_entropy(density: float) -> None:
    (index, shift), rng, stored, entropy = best_index(density), np.random.default_rng(7), 0, 0.0
    for _ in range(4):
        positions = np.flatnonzero(rng.random(CHUNK, np.float32) < density).astype(np.uint32)
        raw = encode_positions(index, shift, positions, counts_of(positions, CHUNK), CHUNK)
        assert raw is not None
        stored += len(pack_stream(raw))
        entropy += entropy_bytes(density, len(positions), CHUNK)
    assert stored <= 1.02 * entropy


@given(st.floats(0, 1))
def test_best_index_is_one_that_the_format_knows(density: float) -> None:
    index, shift = best_index(density)
    assert INDEX_CODECS[index].kept == "stored"
    assert all(parameter.least <= shift <= parameter.most for parameter in INDEX_CODECS[index].parameters)
