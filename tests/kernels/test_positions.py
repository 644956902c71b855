"""Positions by every backend: against plain Python, one element at a time, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.backends import BACKENDS, load
from support.laws import examples
from vectors import scalar

from deltapack.errors import FormatError
from deltapack.format.table import tile_lengths
from deltapack.kernels import Backend, reference
from deltapack.kernels.layout import SPARE, TILE
from deltapack.kernels.reference.positions import _positions_from_gaps, _walk, gaps_of, tile_counts

KEYS = [0, 1, 0x0123456789ABCDEF, 2**64 - 1, 1 << 32]


def test_philox_of_zeros() -> None:
    """The published value of Philox4x32-10."""
    found = reference.philox(0, np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    assert [f"{word:08x}" for word in found[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("key", KEYS)
def test_philox_by_plain_integers(key: int) -> None:
    tiles, blocks = np.array([[0], [7], [2**32 - 1]], np.uint64), np.array([[0, 1, 12345, 2**32 - 1]], np.uint64)
    found = reference.philox(key, tiles, blocks)
    assert found.shape == (3, 4, 4)
    for row, tile in enumerate(tiles[:, 0].tolist()):
        for column, block in enumerate(blocks[0].tolist()):
            assert found[row, column].tolist() == scalar.philox(block, tile, key)


@pytest.mark.parametrize("keep", [1, 2, 1 << 16, (1 << 32) // 10, 1 << 31, 2**32 - 1])
def test_thresholds(keep: int) -> None:
    survive, expected = 2**32, []
    for _ in range(255):
        survive = survive * (2**32 - keep) // 2**32
        expected.append(2**32 - survive)
    assert reference.gap_thresholds(keep).tolist() == expected


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("keep", "length"),
    [
        (1, TILE),
        (1 << 16, TILE),
        ((1 << 32) // 1000, TILE),
        ((1 << 32) // 100, 30_000),
        ((1 << 32) // 10, 5000),
        (1 << 31, 1000),
        (2**32 - 1, 300),
        (1 << 31, 1),
        ((1 << 32) // 10, 64),
        ((1 << 32) // 10, 255),
        ((1 << 32) // 200, 256),
    ],
)
def test_sampled_positions_by_plain_walk(loops: Backend, key: int, keep: int, length: int) -> None:
    for tile in (0, 41):
        positions, counts = loops.sample_positions(key, keep, tile, np.array([length], np.int64))
        assert positions.dtype == np.uint32
        assert positions.tolist() == scalar.seeded_positions(keep, key, tile, length)
        assert counts.tolist() == [len(positions)]


@pytest.mark.parametrize("keep", [1, (1 << 32) // 1000, (1 << 32) // 10, 1 << 31, 2**32 - 1])
def test_tiles_do_not_depend_on_their_chunk(loops: Backend, keep: int) -> None:
    lengths = np.array(tile_lengths(15 * TILE + 77), np.int64)
    positions, counts = loops.sample_positions(5, keep, 32, lengths)
    single = [loops.sample_positions(5, keep, 32 + tile, lengths[tile : tile + 1])[0] for tile in range(16)]
    assert counts.tolist() == [len(part) for part in single]
    assert np.array_equal(positions, np.concatenate([part + np.uint32(tile * TILE) for tile, part in enumerate(single)]))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 65_535])
def test_a_shorter_tile_keeps_the_start_of_the_full_one(loops: Backend, length: int) -> None:
    full, _ = loops.sample_positions(9, 1 << 30, 3, np.array([TILE], np.int64))
    short, _ = loops.sample_positions(9, 1 << 30, 3, np.array([length], np.int64))
    assert np.array_equal(short, full[full < length])


def test_no_tiles(loops: Backend) -> None:
    positions, counts = loops.sample_positions(9, 1 << 30, 0, np.zeros(0, np.int64))
    assert positions.dtype == np.uint32 and len(positions) == len(counts) == 0


@given(st.sampled_from([1, (1 << 32) // 300, 1 << 30, 2**32 - 1]), st.integers(0, 2**64 - 1))
@examples(15)
def test_too_few_samples_are_drawn_again(keep: int, key: int) -> None:
    """The estimate of how many samples a tile needs may fail; the walk then goes on, to the same end."""
    few, few_kept = _walk(key, keep, 1, 2, 1, TILE)
    many, many_kept = _walk(key, keep, 1, 2, 4096, TILE)
    assert few[:, -1].min() >= TILE
    width = min(few.shape[1], many.shape[1])
    assert np.array_equal(few[:, :width], many[:, :width])
    assert np.array_equal(few_kept[:, :width], many_kept[:, :width])


@examples(50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.data())
def test_positions_from_gaps(kept: list[int], data: st.DataObject) -> None:
    lengths = [TILE] * (len(kept) - 1) + [data.draw(st.integers(1, 40))]
    gaps, expected, leaves = [], [], False
    for tile, count in enumerate(kept):
        cursor = 0
        for _ in range(count):
            gap = data.draw(st.integers(0, 12) | st.just(TILE - 8))
            gaps.append(gap)
            expected.append(tile * TILE + cursor + gap)
            leaves |= cursor + gap >= lengths[tile]
            cursor += gap + 1
    arrays = np.array(gaps, np.int64), np.array(kept, np.int64), np.array(lengths, np.int64)
    if leaves:
        with pytest.raises(FormatError) as caught:
            _positions_from_gaps(*arrays)
        assert caught.value.rule == "R9"
    else:
        positions = _positions_from_gaps(*arrays)
        assert positions.tolist() == expected
        assert gaps_of(positions, arrays[1]).tolist() == gaps


def decoded(loops: Backend, codec: str, raw: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> list[int] | str:
    """The positions, or the message of the error."""
    try:
        if codec == "bytes":
            positions = loops.byte_gap_positions(raw, counts, lengths)
        elif codec == "bitmap":
            positions = loops.bitmap_positions(raw, counts, lengths)
        else:
            positions = loops.rice_gap_positions(raw, int(codec), counts, lengths)
        return [int(position) for position in positions]
    except FormatError as error:
        assert error.rule == "R9"
        return str(error)


@pytest.mark.parametrize("codec", ["bytes", "1", "4", "15"])
@examples(150)
@given(st.binary(max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 600))
def test_backends_take_and_refuse_the_same_gap_streams(codec: str, raw: bytes, kept: list[int], last: int) -> None:
    lengths = np.array([TILE] * (len(kept) - 1) + [last], np.int64)
    arguments = np.frombuffer(raw, np.uint8), np.minimum(np.array(kept, np.int64), lengths), lengths
    one, other = (decoded(load(name), codec, *arguments) for name in BACKENDS)
    assert one == other


@examples(150)
@given(st.binary(min_size=1, max_size=12), st.integers(0, 7), st.integers(-1, 1))
def test_backends_take_and_refuse_the_same_bitmaps(raw: bytes, unused: int, wrong: int) -> None:
    ones = sum(byte.bit_count() for byte in raw)
    arguments = np.frombuffer(raw, np.uint8), np.array([max(0, ones + wrong)]), np.array([8 * len(raw) - unused])
    one, other = (decoded(load(name), "bitmap", *arguments) for name in BACKENDS)
    assert one == other


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.5, 0.97])
def test_streams_of_whole_chunks_come_back(loops: Backend, density: float) -> None:
    lengths = np.array(tile_lengths(15 * TILE + 77), np.int64)
    positions = np.flatnonzero(np.random.default_rng(1).random(lengths.sum()) < density).astype(np.uint32)
    counts = np.bincount(positions // TILE, minlength=16)
    out = np.empty(lengths.sum() + SPARE, np.uint32)
    raw = loops.byte_gaps(positions, counts)
    assert raw.tobytes() == reference.byte_gaps(positions, counts).tobytes()
    assert np.array_equal(loops.byte_gap_positions(raw, counts, lengths, out), positions)
    bitmap = loops.bitmap_of(positions, int(lengths.sum()))
    assert bitmap.tobytes() == reference.bitmap_of(positions, int(lengths.sum())).tobytes()
    assert np.array_equal(loops.bitmap_positions(bitmap, counts, lengths, out), positions)


@pytest.mark.parametrize("keep", [1, (1 << 32) // 1000, (1 << 32) // 10, 1 << 31, 2**32 - 1])
def test_backends_sample_the_same_positions(keep: int) -> None:
    """On whole chunks, where the plain walk would take too long."""
    lengths = np.array(tile_lengths(15 * TILE + 77), np.int64)
    for first in (0, 16, 2**32 - 16):
        one, other = (load(name).sample_positions(2**63 + 5, keep, first, lengths) for name in BACKENDS)
        assert one[0].tobytes() == other[0].tobytes()
        assert one[1].tobytes() == other[1].tobytes()


def test_results_are_views_of_the_room_that_is_given(loops: Backend) -> None:
    lengths, out = np.array([1000], np.int64), np.empty(1000 + SPARE, np.uint32)
    positions, counts = loops.sample_positions(5, 1 << 30, 0, lengths, out)
    assert np.shares_memory(positions, out)
    raw = loops.byte_gaps(positions.copy(), counts)
    assert np.shares_memory(loops.byte_gap_positions(raw, counts, lengths, out), out)
    with pytest.raises(ValueError, match="too few"):
        loops.sample_positions(5, 1 << 30, 0, lengths, out[:1000])


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_tile_counts(length: int) -> None:
    positions = np.flatnonzero(np.random.default_rng(length).random(length) < 0.3)
    expected = [sum(1 for position in positions.tolist() if position // 65_536 == tile) for tile in range(len(tile_lengths(length)))]
    for kind in (np.int64, np.uint32):
        assert tile_counts(positions.astype(kind), length).tolist() == expected
