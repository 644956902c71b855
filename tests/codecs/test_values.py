"""Value codecs: bytes by the specification, values by scalar arithmetic, and bytes made by an enemy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.codecs import FLOAT_CODES, SCALED, code_range, is_sign
from support.laws import examples

from deltapack.codecs.planes import split_planes
from deltapack.codecs.values import codes_raw_length, decode_values, pack_codes, scales_raw_length
from deltapack.errors import FormatError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels import rounding

ONE = np.float32(1)
BF16_ONE = 0x3F80


def draw_codes(codec: str, count: int, seed: int) -> NDArray[np.int8]:
    low, high = code_range(codec)
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1, 1], count) if is_sign(codec) else rng.integers(low, high + 1, count)
    return codes.astype(np.int8)


def pack_by_hand(codec: str, codes: list[int]) -> bytes:
    """One integer of all bits, least significant code first."""
    bits = VALUE_CODECS[codec].bits
    fields = [int(code < 0) if is_sign(codec) else code & (1 << bits) - 1 for code in codes]
    number = sum(field << i * bits for i, field in enumerate(fields))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("codec", SCALED)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 127, 128, 129, 1000])
def test_codes_round_trip(codec: str, count: int) -> None:
    codes, counts = draw_codes(codec, count, count), np.array([count], np.int64)
    raw = pack_codes(codec, codes)
    assert raw == pack_by_hand(codec, codes.tolist())
    assert len(raw) == codes_raw_length(codec, count)
    scales = split_planes(np.full(-(-count // 128), BF16_ONE, np.uint16))
    assert len(scales) == scales_raw_length(counts)
    found = decode_values(codec, raw, scales, counts, ONE)
    assert found.dtype == np.float32
    assert np.array_equal(found, codes.astype(np.float32))


@pytest.mark.parametrize("codec", SCALED)
def test_extreme_codes(codec: str) -> None:
    low, high = code_range(codec)
    raw = pack_codes(codec, np.array([low, high, low], np.int8))
    found = decode_values(codec, raw, split_planes(np.array([BF16_ONE], np.uint16)), np.array([3]), ONE)
    assert found.tolist() == [low, high, low]


@given(st.sampled_from(SCALED), st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_scales_belong_to_groups_of_one_tile(codec: str, kept: list[int], seed: int) -> None:
    """Value = f32(code) * (f32(scale) * factor), groups of 128 afresh in each tile."""
    counts, rng = np.array(kept, np.int64), np.random.default_rng(seed)
    groups = [min(128, count - start) for count in kept for start in range(0, count, 128)]
    scales = rng.integers(0, 0x10000, len(groups)).astype(np.uint16)
    scales[(scales & 0x7F80) == 0x7F80] = 0x8001
    codes, factor = draw_codes(codec, sum(kept), seed), np.float32(rng.normal())
    found = decode_values(codec, pack_codes(codec, codes), split_planes(scales), counts, factor)
    expected, at = [], 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for scale, size in zip(scales.tolist(), groups, strict=True):
            step = np.uint32(scale << 16).view(np.float32) * factor
            expected += [np.float32(code) * step for code in codes[at : at + size]]
            at += size
    assert found.tobytes() == np.array(expected, np.float32).tobytes()


@pytest.mark.parametrize("codec", FLOAT_CODES)
@pytest.mark.parametrize("factor", [1.0, -3.0, 1e30, 1e-30])
def test_floats_round_trip(codec: str, factor: float) -> None:
    dtype = FLOAT_CODES[codec]
    elements: NDArray[Any] = np.random.default_rng(dtype.itemsize).integers(0, 256, 4000 * dtype.itemsize, np.uint8).view(dtype.storage)
    elements = elements[np.isfinite(rounding.to_f32(elements, dtype))]
    with np.errstate(over="ignore", under="ignore"):
        expected = rounding.to_f32(elements, dtype) * np.float32(factor)
    raw = pack_codes(codec, elements)
    assert len(raw) == codes_raw_length(codec, len(elements))
    found = decode_values(codec, raw, b"", np.array([len(elements)], np.int64), np.float32(factor))
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("codec", "bits"),
    [
        *(("f32", bits) for bits in (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF)),
        *(("bf16", bits) for bits in (0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF)),
        *(("f16", bits) for bits in (0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF)),
    ],
)
def test_codes_that_are_not_finite(codec: str, bits: int) -> None:
    elements = np.array([0, bits, 0], f"<u{FLOAT_CODES[codec].itemsize}")
    with pytest.raises(FormatError, match="finite") as caught:
        decode_values(codec, split_planes(elements), b"", np.array([3], np.int64), ONE)
    assert caught.value.rule == "R9"


@pytest.mark.parametrize("codec", SCALED)
@pytest.mark.parametrize("scale", [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF])
def test_scales_that_are_not_finite(codec: str, scale: int) -> None:
    raw = pack_codes(codec, np.full(200, -1, np.int8))
    with pytest.raises(FormatError, match="finite") as caught:
        decode_values(codec, raw, split_planes(np.array([BF16_ONE, scale], np.uint16)), np.array([200], np.int64), ONE)
    assert caught.value.rule == "R9"


@pytest.mark.parametrize("codec", FLOAT_CODES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_no_float_codec_takes_infinity_or_nan(codec: str, value: float) -> None:
    raw = split_planes(rounding.from_f32(np.array([0, value], np.float32), FLOAT_CODES[codec]))
    with pytest.raises(FormatError, match="finite") as caught:
        decode_values(codec, raw, b"", np.array([2], np.int64), ONE)
    assert caught.value.rule == "R9"


@pytest.mark.parametrize("codec", [codec for codec in SCALED if VALUE_CODECS[codec].bits < 8])
def test_unused_bits_must_be_zero(codec: str) -> None:
    bits = VALUE_CODECS[codec].bits
    per_byte = 8 // bits
    scales = split_planes(np.array([BF16_ONE], np.uint16))
    for count in range(1, per_byte):
        raw = pack_codes(codec, draw_codes(codec, count, count))
        for bit in range(count * bits, 8):
            with pytest.raises(FormatError, match="unused") as caught:
                decode_values(codec, bytes([raw[0] | 1 << bit]), scales, np.array([count], np.int64), ONE)
            assert caught.value.rule == "R9"


@examples(200)
@given(st.sampled_from(sorted(VALUE_CODECS)), st.integers(0, 40), st.data())
def test_any_bytes_are_refused_or_decoded(codec: str, count: int, data: st.DataObject) -> None:
    counts = np.array([count], np.int64)
    size = codes_raw_length(codec, count)
    codes = data.draw(st.binary(min_size=size, max_size=size))
    scales = data.draw(st.binary(min_size=2, max_size=2)) if count and VALUE_CODECS[codec].scaled else b""
    try:
        found = decode_values(codec, codes, scales, counts, ONE)
    except FormatError as error:
        assert error.rule == "R9"
    else:
        # A large code times a large scale may be infinite: the digest of the result tells whether that was meant.
        assert len(found) == count
        assert not np.isnan(found).any()
