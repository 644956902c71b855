"""Exact chunks: every bit comes back, both backends write the same bytes, and damage is an error of ours."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from support.backends import load
from support.laws import examples

from deltapack import kernels
from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk
from deltapack.dtypes import BY_NAME, DType
from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, TILE

Array = NDArray[Any]
EQUAL, PLANES, DENSE, SPARSE = range(4)
UNKNOWN = [DType(f"new{size}", "NEW", "new", size, f"<u{size}" if size > 1 else "|u1", False) for size in (1, 2, 4, 8)]
TYPES = [*BY_NAME.values(), *UNKNOWN]
KINDS = ["any", "equal", "near", "sparse", "far", "stairs", "flips", "classes", "shifted", "zeros", "special"]


def random_bits(dtype: DType, length: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, length * dtype.itemsize, np.uint8).view(dtype.storage)


def bits_of(elements: Array) -> Array:
    return elements.view(f"<u{elements.dtype.itemsize}")


def weights(dtype: DType, length: int, seed: int) -> Array:
    """Bits that look like weights: of floats, exponents near each other."""
    bits = bits_of(random_bits(dtype, length, seed)).copy()
    kind = bits.dtype.type
    width = 8 * dtype.itemsize
    if width > 8:
        bits >>= kind(3)
        bits |= kind(1 << width - 3)
        bits ^= np.where(np.random.default_rng(seed + 1).random(length) < 0.5, kind(1 << width - 1), kind(0))
    return bits.view(dtype.storage)


def tuned_from(base: Array, dtype: DType, kind: str, seed: int) -> Array:
    """A fine-tune whose differences are of a kind."""
    rng, bits = np.random.default_rng(seed), bits_of(base).copy()
    number = bits.dtype.type
    if kind == "any":
        return random_bits(dtype, len(base), seed)
    if kind == "near":
        bits += np.round(rng.standard_normal(len(bits)) * 30).astype(np.int64).astype(bits.dtype)
    if kind == "sparse":
        bits[rng.random(len(bits)) < 0.004] ^= number(5)
    if kind == "far":
        bits[rng.random(len(bits)) < 0.002] ^= number(1 << 8 * dtype.itemsize - 2)
    if kind == "stairs":
        bits += (bits >> number(max(0, 8 * dtype.itemsize - 12))) & number(7)
        bits[::11] += number(1)
    if kind == "flips":
        bits += np.round(rng.standard_normal(len(bits)) * 3).astype(np.int64).astype(bits.dtype)
        bits[rng.random(len(bits)) < 0.1] ^= number(1 << 8 * dtype.itemsize - 1)
    if kind == "classes":
        wild = (np.arange(len(bits)) // 700) % 3 == 1
        bits[wild] ^= rng.integers(0, 1 << 4 * dtype.itemsize, int(wild.sum())).astype(bits.dtype)
    if kind == "shifted":
        bits = np.roll(bits, 1)
    if kind == "zeros":
        bits[:] = number(1 << 8 * dtype.itemsize - 1)
    if kind == "special":
        width = 8 * dtype.itemsize
        ones = (1 << width) - 1
        patterns = [0, 1, ones, ones >> 1, 1 << width - 1, ones - 1, ones >> 2, ones << 1 & ones, (ones >> 1) ^ (ones >> 6)]
        bits[:] = np.array([pattern & ones for pattern in patterns], bits.dtype)[rng.integers(0, 9, len(bits))]
    return bits.view(base.dtype)


def check(base: Array | None, tuned: Array, dtype: DType) -> bytes:
    """Encode and decode with both backends."""
    written = []
    for backend in map(load, ("cpu", "reference")):
        with mock.patch.object(kernels, "active", return_value=backend):
            written.append(encode_exact_chunk(base, tuned, dtype))
            back = decode_exact_chunk(written[0], base, dtype, len(tuned))
            assert back.dtype == tuned.dtype and back.tobytes() == tuned.tobytes()
    assert written[0] == written[1]
    assert len(written[0]) <= tuned.nbytes + 2 + 8
    return written[0]


@examples(150)
@given(st.sampled_from(TYPES), st.integers(0, 70) | st.integers(71, 5000), st.sampled_from(KINDS), st.integers(0, 1 << 30), st.booleans())
def test_every_bit_comes_back(dtype: DType, length: int, kind: str, seed: int, is_smooth: bool) -> None:
    base = (weights if is_smooth else random_bits)(dtype, length, seed)
    tuned = tuned_from(base, dtype, kind, seed + 2)
    assert (check(base, tuned, dtype) == bytes([EQUAL])) == (length > 0 and base.tobytes() == tuned.tobytes())
    check(None, tuned, dtype)


@examples(60)
@given(st.sampled_from(TYPES), st.data())
def test_any_elements_at_all(dtype: DType, data: st.DataObject) -> None:
    """Not drawn from a generator, so that hypothesis can look for what breaks."""
    length = data.draw(st.integers(0, 20))
    raw = st.binary(min_size=length * dtype.itemsize, max_size=length * dtype.itemsize)
    base, tuned = (np.frombuffer(data.draw(raw), dtype.storage) for _ in range(2))
    check(base, tuned, dtype)


BORDERS = ["f64", "c64", "f32", "bf16", "f16", "f8_e4m3fn", "i64", "u8"]


@pytest.mark.parametrize("length", [4095, 4096, 4097, TILE - 1, TILE, TILE + 1, 2 * TILE + 129])
@pytest.mark.parametrize("name", BORDERS)
def test_borders_of_tiles(name: str, length: int) -> None:
    """The slow twin takes a second for a tile, so each type meets three kinds behind one, and each kind two types or more."""
    dtype, at = BY_NAME[name], BORDERS.index(name)
    base = weights(dtype, length, length)
    kinds = {
        TILE - 1: ("near",),
        TILE: ("flips",),
        TILE + 1: [KINDS[(at + 4 * i) % len(KINDS)] for i in range(3)],
        2 * TILE + 129: ("sparse",),
    }
    for kind in kinds.get(length, ["near", "sparse", "flips"]):
        check(base, tuned_from(base, dtype, kind, 1), dtype)


@pytest.mark.parametrize("name", ["f32", "bf16", "f8_e5m2", "c64"])
def test_a_whole_chunk(name: str) -> None:
    """As long as a chunk can be; the fast loops only."""
    dtype = BY_NAME[name]
    base = weights(dtype, CHUNK, 0)
    for kind in KINDS:
        tuned = tuned_from(base, dtype, kind, 1)
        back = decode_exact_chunk(encode_exact_chunk(base, tuned, dtype), base, dtype, CHUNK)
        assert back.tobytes() == tuned.tobytes(), kind


def forms(dtype: DType, kind: str) -> int:
    base = weights(dtype, 3 * TILE, 5)
    return encode_exact_chunk(base, tuned_from(base, dtype, kind, 6), dtype)[0]


def test_each_form_is_taken_where_it_is_smallest() -> None:
    bf16 = BY_NAME["bf16"]
    assert [forms(bf16, kind) for kind in ("equal", "any", "near", "flips")] == [EQUAL, PLANES, DENSE, DENSE]
    base = weights(bf16, 3 * TILE, 5)
    few = bits_of(base).copy()
    few[::5001] ^= np.uint16(3)
    assert encode_exact_chunk(base, few.view(base.dtype), bf16)[0] == SPARSE
    repeated = np.tile(bits_of(weights(bf16, 3, 1)), TILE)  # what zstd sees and no frequency does
    assert len(check(base, repeated.view(base.dtype), bf16)) < 300


def test_staircases_cost_next_to_nothing() -> None:
    """A decayed weight moves by steps that its mantissa tells; what is left to code is a bit in a hundred."""
    f32 = BY_NAME["f32"]
    base = weights(f32, TILE, 3)
    steps = np.random.default_rng(0).integers(0, 1 << 20, 64, np.uint32)
    tuned = bits_of(base) - steps[bits_of(base) >> np.uint32(17) & np.uint32(63)]
    assert len(check(base, tuned.view(base.dtype), f32)) < 600


def test_far_signs_are_near_their_entropy() -> None:
    """A sign that flips costs a symbol and the mantissa, not a difference of twice the magnitude and more tables."""
    bf16 = BY_NAME["bf16"]
    base = weights(bf16, TILE, 3)
    tuned = tuned_from(base, bf16, "flips", 1)
    assert len(check(base, tuned, bf16)) < TILE * (0.47 + 0.1 * 10.5 + 0.9 * 3.7) / 8


def test_numbers_alone_are_near_their_exponents_entropy() -> None:
    normal = np.random.default_rng(0).standard_normal(4 * TILE).astype(np.float32)
    counts = np.bincount(normal.view(np.uint32) << np.uint32(1) >> np.uint32(24))
    share = counts[counts > 0] / len(normal)
    entropy = -(share * np.log2(share)).sum() + 24
    assert len(check(None, normal, BY_NAME["f32"])) * 8 < len(normal) * entropy * 1.002


def chunk_for_damage(form: int) -> tuple[bytes, Array, DType]:
    dtype = BY_NAME["bf16"]
    base = weights(dtype, 900, 1)
    tuned = bits_of(base).copy()
    if form == SPARSE:
        tuned[[5, 99, 300]] ^= np.array([0x1234, 0x4321, 0x0F0F], np.uint16)  # a table for these symbols would take more than they do
    else:
        tuned += np.round(np.random.default_rng(3).standard_normal(900) * 5).astype(np.int64).astype(np.uint16)
    return encode_exact_chunk(None if form == PLANES else base, tuned.view(base.dtype), dtype), base, dtype


@pytest.mark.parametrize("form", [PLANES, DENSE, SPARSE])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_damage_is_an_error_or_other_elements(form: int, backend: str) -> None:
    """Each byte changed in several ways, and cut after each: nothing but `FormatError`, or elements that a digest refuses.

    The slow twin gets all of the tables and one in seven of what comes after.
    """
    data, base, dtype = chunk_for_damage(form)
    assert data[0] == form
    rng, refused = np.random.default_rng(0), 0
    places = [place for place in range(len(data)) if backend == "cpu" or place < 64 or place % 7 == 0]
    with mock.patch.object(kernels, "active", return_value=load(backend)):
        for place in places:
            with pytest.raises(FormatError):
                decode_exact_chunk(data[:place], base, dtype, len(base))
            for flip in (1, 128, 255, int(rng.integers(1, 256))):
                damaged = bytearray(data)
                damaged[place] ^= flip
                try:
                    assert len(decode_exact_chunk(bytes(damaged), base, dtype, len(base))) == len(base)
                except FormatError as error:
                    refused += 1
                    assert error.rule in ("R8", "R9", "R10")
    assert refused > {PLANES: 0.05, DENSE: 2, SPARSE: 0.3}[form] * len(places)  # a byte of a plane says nothing of its neighbours


@examples(200)
@given(st.binary(max_size=200), st.sampled_from(TYPES), st.integers(0, 300), st.booleans())
def test_anything_is_an_error_or_elements(data: bytes, dtype: DType, length: int, has_base: bool) -> None:
    base = random_bits(dtype, length, 1) if has_base else None
    try:
        assert len(decode_exact_chunk(data, base, dtype, length)) == length
    except FormatError as error:
        assert error.rule in ("R8", "R9", "R10")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_another_base_gives_other_elements_or_an_error(backend: str) -> None:
    """The bytes of a chunk do not know their base; nothing is read out of bounds where it is another."""
    data, base, dtype = chunk_for_damage(DENSE)
    with mock.patch.object(kernels, "active", return_value=load(backend)):
        for seed in range(20):
            other = random_bits(dtype, len(base), seed)
            try:
                assert decode_exact_chunk(data, other, dtype, len(base)).tobytes() != base.tobytes()
            except FormatError as error:
                assert error.rule == "R9"


@pytest.mark.parametrize("name", ["f64", "f32", "u8"])
def test_memory_is_bounded(name: str) -> None:
    """A chunk needs at most 64 MiB beside its own elements."""
    dtype = BY_NAME[name]
    base = weights(dtype, CHUNK, 0)
    tuned = tuned_from(base, dtype, "any", 1)
    encode_exact_chunk(base[:5000], tuned[:5000], dtype)  # what is compiled is no part of it
    tracemalloc.start()
    try:
        data = encode_exact_chunk(base, tuned, dtype)
        decode_exact_chunk(data, base, dtype, CHUNK)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_threads_do_not_disturb_each_other() -> None:
    dtype = BY_NAME["bf16"]
    pairs = [(base, tuned_from(base, dtype, KINDS[seed % len(KINDS)], seed)) for seed in range(24) for base in [weights(dtype, TILE, seed)]]
    alone = [encode_exact_chunk(base, tuned, dtype) for base, tuned in pairs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: encode_exact_chunk(pair[0], pair[1], dtype), pairs))
        back = list(pool.map(lambda data, pair: decode_exact_chunk(data, pair[0], dtype, TILE), together, pairs))
    assert together == alone
    assert all(found.tobytes() == tuned.tobytes() for found, (_, tuned) in zip(back, pairs, strict=True))
