"""Trits by every backend: back and forth, and what no writer makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.backends import BACKENDS, load

from deltapack.errors import FormatError
from deltapack.kernels import Backend


def random_codes(length: int) -> NDArray[np.int8]:
    return np.random.default_rng(length).integers(-1, 2, length).astype(np.int8)


def test_the_first_trit_is_the_lowest(loops: Backend) -> None:
    codes = np.array([1, -1, 0, 0, 1, -1], np.int8)
    assert loops.pack_trits(codes).tobytes() == b"\x58\x02"
    assert loops.trit_codes(np.frombuffer(b"\x58\x02", np.uint8), 6).tolist() == codes.tolist()


def test_every_byte_by_plain_division(loops: Backend) -> None:
    for byte in range(243):
        trits = [byte // 3**place % 3 for place in range(5)]
        found = loops.trit_codes(np.array([byte], np.uint8), 5)
        assert found.dtype == np.int8 and found.tolist() == [-1 if trit == 2 else trit for trit in trits]
        assert loops.pack_trits(found).tolist() == [byte]


@given(st.lists(st.integers(-1, 1), max_size=200))
@settings(max_examples=60, deadline=None)
def test_back_and_forth(values: list[int]) -> None:
    codes = np.array(values, np.int8)
    one, other = (load(name).pack_trits(codes) for name in BACKENDS)
    assert one.tobytes() == other.tobytes() and len(one) == -(-len(codes) // 5)
    for name in BACKENDS:
        assert load(name).trit_codes(one, len(codes)).tobytes() == codes.tobytes()


@pytest.mark.parametrize("length", [5, 6, 9, 10_003])
@pytest.mark.parametrize("byte", [243, 244, 255])
def test_a_byte_that_holds_no_trits(loops: Backend, length: int, byte: int) -> None:
    raw = loops.pack_trits(random_codes(length))
    for place in {0, len(raw) // 2, len(raw) - 1}:
        damaged = raw.copy()
        damaged[place] = byte
        with pytest.raises(FormatError, match=r"holds no trits.*R9"):
            loops.trit_codes(damaged, length)


@pytest.mark.parametrize("used", [1, 2, 3, 4])
def test_trits_behind_the_last_code(loops: Backend, used: int) -> None:
    raw = loops.pack_trits(random_codes(10 + used))
    for place in range(used, 5):
        for trit in (1, 2):
            damaged = raw.copy()
            damaged[-1] += trit * 3**place
            with pytest.raises(FormatError, match=r"behind the last code.*R9"):
                loops.trit_codes(damaged, 10 + used)


@given(st.lists(st.integers(-1, 1), max_size=200))
@settings(max_examples=40, deadline=None)
def test_zeros_are_left_out(values: list[int]) -> None:
    codes, positions = np.array(values, np.int8), np.arange(7, 7 + 3 * len(values), 3, dtype=np.uint32)
    for name in BACKENDS:
        kept, places = load(name).without_zeros(codes, positions)
        assert kept.tolist() == [value for value in values if value]
        assert places.tolist() == [7 + 3 * i for i, value in enumerate(values) if value]
