"""Chunks of trits in one call: the bits of the steps, zeros left alone, and nothing changed where a stream is damaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.backends import load

from deltapack.dtypes import BY_NAME
from deltapack.format.table import tile_lengths
from deltapack.kernels import Encoded, reference
from deltapack.kernels.layout import SPARE, TILE, Lines, Sparse

INDEXES = ("seeded", "stratified")
FACTOR, SCALE = np.float32(3.9215686), float(np.float32(0.0123))
NONE = np.zeros(0, np.float32)
NOTHING = np.zeros(0, np.uint8)


def chunk_of(index: str, length: int, keep: int = round(0.255 * 2**32), share: float = 0.22, seed: int = 0) -> tuple[Encoded, Sparse]:
    """A chunk of random trits, and what the steps make of it."""
    rng, lengths = np.random.default_rng(seed), np.array(tile_lengths(length), np.int64)
    draw = reference.stratified_positions if index == "stratified" else reference.sample_positions
    positions, counts = draw(0x0123456789ABCDEF, keep, 16, lengths)
    codes = (rng.choice([-1, 1], len(positions)) * (rng.random(len(positions)) < share)).astype(np.int8)
    raw = reference.pack_trits(codes)
    encoded = Encoded(index, 0, 0x0123456789ABCDEF, keep, 16, NOTHING, 0, raw, NOTHING, FACTOR, counts, lengths, True, SCALE)
    there = codes != 0
    lines = Lines(SCALE, NONE, NONE, 1)
    return encoded, Sparse(positions[there], reference.scaled_values(codes[there], positions[there], 0, lines, FACTOR))


def room_for(length: int) -> Sparse:
    return Sparse(np.empty(length + SPARE, np.uint32), np.empty(length + SPARE, np.float32))


def random_elements(length: int, name: str) -> NDArray[np.generic]:
    return np.random.default_rng(length).integers(0, 256, length * BY_NAME[name].itemsize, np.uint8).view(BY_NAME[name].storage)


@pytest.mark.parametrize("length", [1, 4, 300, TILE - 1, TILE + 1, 5 * TILE + 77])
@pytest.mark.parametrize("index", INDEXES)
def test_one_call_gives_the_bits_of_the_steps(index: str, length: int) -> None:
    loops = load("cpu")
    encoded, wanted = chunk_of(index, length)
    found = loops.decode_encoded(encoded, room_for(length))
    assert found is not None
    assert found.positions.tobytes() == wanted.positions.tobytes() and found.values.tobytes() == wanted.values.tobytes()
    for name in ("bf16", "f16", "f32"):
        one, other = random_elements(length, name).copy(), random_elements(length, name).copy()
        assert loops.add_encoded(one, BY_NAME[name], encoded, room_for(length))
        reference.add_in_place(other, BY_NAME[name], [wanted])
        assert one.tobytes() == other.tobytes()


@given(
    st.sampled_from(INDEXES),
    st.integers(0, 2 * TILE + 50),
    st.one_of(st.sampled_from([1 << 16, (1 << 32) - 1]), st.integers(1 << 16, (1 << 32) - 1)),
    st.sampled_from([0.0, 0.22, 1.0]),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_any_length_and_density(index: str, length: int, keep: int, share: float, seed: int) -> None:
    """Trits go on through tiles, so bytes lie across their borders."""
    encoded, wanted = chunk_of(index, length, keep, share, seed)
    found = load("cpu").decode_encoded(encoded, room_for(length))
    assert found is not None
    assert found.positions.tobytes() == wanted.positions.tobytes() and found.values.tobytes() == wanted.values.tobytes()


@pytest.mark.parametrize("index", INDEXES)
def test_elements_with_a_zero_keep_their_bits(index: str) -> None:
    """Minus zero and any NaN, which an element that is kept would not."""
    encoded, wanted = chunk_of(index, 3000)
    odd = np.where(np.arange(3000) % 2, 0x8000, 0xFFC1).astype(np.uint16)
    elements = odd.copy()
    assert load("cpu").add_encoded(elements, BY_NAME["bf16"], encoded, room_for(3000))
    others = np.setdiff1d(np.arange(3000), wanted.positions)
    assert (elements[others] == odd[others]).all() and not (elements[wanted.positions] == odd[wanted.positions]).any()


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("what", ["first count", "last count", "no trits", "behind the last"])
def test_damage_changes_nothing(index: str, what: str) -> None:
    """The steps then say what is wrong."""
    length = 2 * TILE + 333
    encoded, _ = chunk_of(index, length)
    codes, counts = encoded.codes.copy(), encoded.counts.copy()
    assert counts.sum() % 5, "there are trits behind the last"
    if what.endswith("count"):
        counts[0 if what == "first count" else -1] += 1
    codes[len(codes) // 2] = 243 if what == "no trits" else codes[len(codes) // 2]
    codes[-1] += 81 if what == "behind the last" else 0
    damaged, elements, loops = replace(encoded, codes=codes, counts=counts), random_elements(length, "bf16").copy(), load("cpu")
    before = elements.copy()
    assert loops.decode_encoded(damaged, room_for(length)) is None
    assert not loops.add_encoded(elements, BY_NAME["bf16"], damaged, room_for(length))
    assert elements.tobytes() == before.tobytes()


def test_what_has_no_fused_call() -> None:
    encoded, _ = chunk_of("stratified", 300)
    assert not load("cpu").add_encoded(np.zeros(300, np.float64), BY_NAME["f64"], encoded, room_for(300))
    assert load("cpu").decode_encoded(replace(encoded, index="gaps"), room_for(300)) is None
    assert reference.decode_encoded(encoded, room_for(300)) is None
