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
