"""Stratified masks by every backend: against plain Python, one element at a time, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backends import BACKENDS, load
from vectors import scalar

from deltapack.format.table import tile_lengths
from deltapack.kernels import Backend
from deltapack.kernels.layout import SPARE, TILE
from deltapack.kernels.reference.strata import strata_of, stride_of

LEAST, MOST = 1 << 16, (1 << 32) - 1
KEEPS = [LEAST, LEAST + 1, (1 << 32) // 1000, round(0.102 * 2**32), round(0.255 * 2**32), 1 << 30, 1 << 31, 3 << 30, MOST]
KEY = 0x0123456789ABCDEF


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 333, 4097])
def test_positions_by_plain_walk(loops: Backend, keep: int, length: int) -> None:
    for key, tile in ((KEY, 0), (2**64 - 1, 41), (1 << 32, 2**32 - 1)):
        positions, counts = loops.stratified_positions(key, keep, tile, np.array([length], np.int64))
        assert positions.dtype == np.uint32
        assert positions.tolist() == scalar.stratified_positions(keep, key, tile, length)
        assert counts.tolist() == [len(positions)]


@pytest.mark.parametrize("keep", KEEPS)
def test_each_stratum_keeps_one(loops: Backend, keep: int) -> None:
    """So a tile keeps nearly the same number each time: only the last stratum may keep none."""
    positions, counts = loops.stratified_positions(KEY, keep, 0, np.array([TILE], np.int64))
    begins = np.arange(strata_of(keep, TILE) + 1, dtype=np.int64) * stride_of(keep) >> 16
    found = np.searchsorted(begins, positions, side="right") - 1
    assert np.array_equal(found, np.arange(len(positions)))
    assert strata_of(keep, TILE) - 1 <= counts[0] <= strata_of(keep, TILE)
    assert abs(counts[0] - TILE * keep / 2**32) <= 1


def test_all_elements_of_a_stratum_are_as_likely(loops: Backend) -> None:
    """Strata of 16 elements: which of them is kept is even, within five standard deviations."""
    positions, _ = loops.stratified_positions(KEY, 1 << 28, 0, np.full(16, TILE, np.int64))
    counts = np.bincount(positions % 16, minlength=16)
    expected = len(positions) / 16
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@given(
    st.one_of(st.sampled_from(KEEPS), st.integers(LEAST, MOST)), st.integers(0, 2**64 - 1), st.integers(0, 2**30), st.integers(0, 3 * TILE)
)
@settings(max_examples=40, deadline=None)
def test_backends_agree(keep: int, key: int, tile: int, length: int) -> None:
    lengths = np.array(tile_lengths(length), np.int64)
    (one, counts), (other, others) = (load(name).stratified_positions(key, keep, tile, lengths) for name in BACKENDS)
    assert one.tobytes() == other.tobytes() and counts.tolist() == others.tolist()
    assert (np.diff(one.astype(np.int64)) > 0).all() and (one < length).all()


@pytest.mark.parametrize("keep", KEEPS)
def test_tiles_do_not_depend_on_their_chunk(loops: Backend, keep: int) -> None:
    lengths = np.array(tile_lengths(4 * TILE + 77), np.int64)
    positions, counts = loops.stratified_positions(5, keep, 32, lengths)
    single = [loops.stratified_positions(5, keep, 32 + tile, lengths[tile : tile + 1])[0] for tile in range(5)]
    assert counts.tolist() == [len(part) for part in single]
    assert np.array_equal(positions, np.concatenate([part + np.uint32(tile * TILE) for tile, part in enumerate(single)]))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 65_535])
def test_a_shorter_tile_keeps_the_start_of_the_full_one(loops: Backend, length: int) -> None:
    full, _ = loops.stratified_positions(9, 1 << 30, 3, np.array([TILE], np.int64))
    short, _ = loops.stratified_positions(9, 1 << 30, 3, np.array([length], np.int64))
    assert np.array_equal(short, full[full < length])


def test_room_is_used_and_has_to_be_large_enough(loops: Backend) -> None:
    lengths = np.array([TILE, 100], np.int64)
    out = np.zeros(TILE + 100 + SPARE, np.uint32)
    positions, _ = loops.stratified_positions(5, 1 << 30, 0, lengths, out)
    assert positions.base is out
    assert positions.tobytes() == loops.stratified_positions(5, 1 << 30, 0, lengths)[0].tobytes()
    with pytest.raises(ValueError, match="too few"):
        loops.stratified_positions(5, 1 << 30, 0, lengths, out[:1000])


def test_no_tiles(loops: Backend) -> None:
    positions, counts = loops.stratified_positions(9, 1 << 30, 0, np.zeros(0, np.int64))
    assert positions.dtype == np.uint32 and len(positions) == len(counts) == 0
