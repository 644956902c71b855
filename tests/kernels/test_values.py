"""Values by every backend, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.codecs import FLOAT_CODES

from deltapack.errors import FormatError
from deltapack.format.codecs import FIELDS
from deltapack.kernels import Backend, reference

ONE_SCALE = np.array([0x3F80], np.uint16)


@given(st.lists(st.integers(0, 600), max_size=8))
def test_group_counts(kept: list[int]) -> None:
    expected = [min(128, count - start) for count in kept for start in range(0, count, 128)]
    assert reference.group_counts(np.array(kept, np.int64)).tolist() == expected


@pytest.mark.parametrize("bits", FIELDS)
def test_every_byte_of_codes(loops: Backend, bits: int) -> None:
    raw = np.arange(256, dtype=np.uint8)
    counts = np.full(256 * 8 // bits // 128, 128, np.int64)
    scales = np.repeat(ONE_SCALE, len(counts))
    found = loops.code_values(raw, bits, scales, counts, np.float32(1))
    assert found.dtype == np.float32
    expected = []
    for byte in range(256):
        for slot in range(8 // bits):
            field = byte >> slot * bits & (1 << bits) - 1
            expected.append(1 - 2 * field if bits == 1 else field - (1 << bits) * (field >> bits - 1))
    assert found.tolist() == expected
    assert np.array_equal(loops.pack_codes(found.astype(np.int8), bits), raw)


@pytest.mark.parametrize("bits", FIELDS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 9, 127])
def test_codes_that_do_not_fill_their_last_byte(loops: Backend, bits: int, count: int) -> None:
    rng, low = np.random.default_rng(count), -(1 << bits - 1)
    codes = rng.integers(low, -low, count).astype(np.int8) if bits > 1 else rng.choice([-1, 1], count).astype(np.int8)
    raw, counts, scales = loops.pack_codes(codes, bits), np.array([count]), ONE_SCALE[: min(count, 1)]
    assert raw.tobytes() == reference.pack_codes(codes, bits).tobytes()
    assert loops.code_values(raw, bits, scales, counts, np.float32(1)).tolist() == codes.tolist()
    if count * bits % 8:
        damaged = raw.copy()
        damaged[-1] |= 0x80
        with pytest.raises(FormatError, match="unused bits"):
            loops.code_values(damaged, bits, scales, counts, np.float32(1))


def test_scaled_values_round_once_for_the_group_and_once_for_the_value(loops: Backend) -> None:
    rng = np.random.default_rng(1)
    codes, scales = rng.integers(-128, 128, 129).astype(np.int8), np.array([0x3EAB, 0xBE99], np.uint16)
    factor, room = np.float32(1 / 0.3), np.empty(200, np.float32)
    found = loops.code_values(codes.view(np.uint8), 8, scales, np.array([129], np.int64), factor, room)
    steps = [np.uint32(int(scale) << 16).view(np.float32) * factor for scale in scales]
    assert found.tobytes() == np.array([np.float32(code) * steps[i // 128] for i, code in enumerate(codes)]).tobytes()
    assert np.shares_memory(found, room)


@pytest.mark.parametrize("scale", [0x7F80, 0xFF80, 0x7FC1])
def test_scales_that_are_not_finite(loops: Backend, scale: int) -> None:
    with pytest.raises(FormatError, match="scale is not finite"):
        loops.code_values(np.ones(1, np.uint8), 8, np.array([scale], np.uint16), np.array([1]), np.float32(1))


@pytest.mark.parametrize("codec", FLOAT_CODES)
def test_float_codes_of_any_bits(loops: Backend, codec: str) -> None:
    dtype = FLOAT_CODES[codec]
    raw = np.random.default_rng(2).integers(0, 256, (dtype.itemsize, 1000), np.uint8)
    raw[-1] &= 0xBF  # no exponent of ones only
    found = loops.plane_values(raw.reshape(-1), dtype, np.float32(1 / 0.3), np.empty(1256, np.float32))
    assert found.tobytes() == reference.plane_values(raw.reshape(-1), dtype, np.float32(1 / 0.3)).tobytes()
    ints = int.from_bytes(raw[:, 7].tobytes(), "little")
    element = np.array([ints], f"<u{dtype.itemsize}").view(dtype.storage)
    wide = (element.astype(np.uint32) << 16).view(np.float32) if codec == "bf16" else element.astype(np.float32)
    assert found[7] == wide[0] * np.float32(1 / 0.3)
    raw[:, 500] = 0xFF
    with pytest.raises(FormatError, match="code is not finite"):
        loops.plane_values(raw.reshape(-1), dtype, np.float32(1))
