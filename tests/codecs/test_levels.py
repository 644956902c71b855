"""Levels as a range-coded stream: back and forth, how small, and every way in which a stream can lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltapack.codecs.levels import levels_raw_bounds, pack_levels, unpack_levels
from deltapack.errors import FormatError
from deltapack.kernels.layout import TILE


def gaussian(length: int, sigma: float = 1.0, seed: int = 0) -> NDArray[np.int8]:
    return np.clip(np.rint(np.random.default_rng(seed).normal(0, sigma, length)), -127, 127).astype(np.int8)


@pytest.mark.parametrize("length", [0, 1, 2, 5, 1000, TILE - 1, TILE, TILE + 1, 3 * TILE + 77])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 60.0])
def test_back_and_forth(length: int, sigma: float) -> None:
    levels = gaussian(length, sigma)
    raw = pack_levels(levels)
    least, most = levels_raw_bounds(length)
    assert least <= len(raw) <= most
    assert unpack_levels(raw, length).tobytes() == levels.tobytes()


@given(st.lists(st.integers(-127, 127), max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_levels(values: list[int]) -> None:
    levels = np.array(values, np.int8)
    raw = pack_levels(levels)
    least, most = levels_raw_bounds(len(levels))
    assert least <= len(raw) <= most
    assert unpack_levels(raw, len(levels)).tobytes() == levels.tobytes()


def test_near_the_entropy() -> None:
    levels = gaussian(1 << 20)
    share = np.bincount(levels.astype(int) + 128) / len(levels)
    entropy = -(share[share > 0] @ np.log2(share[share > 0]))
    assert 8 * len(pack_levels(levels)) / len(levels) < 1.01 * entropy


def test_the_example_of_the_page() -> None:
    raw = bytes.fromhex("0A 01 00 02 80 04 00 80 04 00 00 04 04 00")
    assert unpack_levels(raw, 3).tolist() == [0, 1, 0]


HEAD = bytes.fromhex("0A 01 00 02 80 04 00 80 04")
TILES = bytes.fromhex("00 00 04 04 00")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"\x09" + HEAD[1:] + TILES, "no such precision"),
        (b"\x0d" + HEAD[1:] + TILES, "no such precision"),
        (b"\x0a\x02" + HEAD[2:] + TILES, "no such number of lanes"),
        (b"\x0a\x01\x03\x02" + HEAD[4:] + TILES, "no such symbols"),
        (b"\x0a\x01\xfd\xff" + HEAD[4:] + TILES, "no such symbols"),
        (HEAD[:4] + bytes.fromhex("81 04 00 80 04") + TILES, "another sum"),
        (HEAD[:4] + bytes.fromhex("00 00 80 08") + TILES, "does not occur"),
        (HEAD[:4] + bytes.fromhex("80 08 00 00") + TILES, "does not occur"),
        (HEAD[:4] + bytes.fromhex("81 08 00 01") + TILES, "too large"),
        (HEAD[:4] + bytes.fromhex("80 84 00 00 80 04") + TILES, "without need"),
        (HEAD + bytes.fromhex("04 00 00 04 00"), "too large"),
        (HEAD + bytes.fromhex("01 00 00 04 00 00 00"), "do not end"),
        (HEAD + bytes.fromhex("00 01 00 04 00"), "do not end"),
        (HEAD + bytes.fromhex("00 ff 7f 00 00"), "state is out of range"),
        (HEAD + bytes.fromhex("00 00 00 00 80"), "state is out of range"),
        (HEAD + TILES + b"\x00", "bytes after"),
        (b"", "cut"),
    ],
)
def test_a_stream_that_lies(raw: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=rf"stream of levels: .*{what}.*R9"):
        unpack_levels(raw, 3)


def test_bytes_where_there_are_no_levels() -> None:
    with pytest.raises(FormatError, match=r"stream of levels: .*R9"):
        unpack_levels(b"\x00", 0)


@pytest.mark.parametrize("length", [3, 700])
def test_a_cut_stream(length: int) -> None:
    raw = pack_levels(gaussian(length))
    for end in range(len(raw)):
        with pytest.raises(FormatError, match=r"stream of levels: .*R9"):
            unpack_levels(raw[:end], length)


@given(st.integers(1, 400), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_stream_is_refused_or_gives_levels(length: int, data: st.DataObject) -> None:
    """Never another error, and never a level that there is not."""
    raw = bytearray(pack_levels(gaussian(length, 2.0, length)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack_levels(bytes(raw), length)
    except FormatError as error:
        assert error.rule == "R9" and error.what.startswith("stream of levels: ")
    else:
        assert len(found) == length and found.min() >= -127
