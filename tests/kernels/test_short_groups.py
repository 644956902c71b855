"""Groups of fewer than 128 values, at the end of each tile: their scale is of those values alone, whatever stood there before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from deltapack.kernels import Backend
from deltapack.kernels.layout import GROUP

SEARCHES = {"int8": (128, 7, 1), "int4": (8, 4, 12), "int3": (4, 4, 12), "int2": (2, 4, 16)}
CODECS = ["sign", *SEARCHES]
Values = NDArray[np.float32]


def groups(loops: Backend, codec: str, values: Values, counts: list[int]) -> tuple[list[int], list[int]]:
    table = np.array(counts, np.int64)
    codes, scales = loops.sign_groups(values, table) if codec == "sign" else loops.quantize_groups(values, table, *SEARCHES[codec])
    return codes.tolist(), scales.tolist()


def coarse(value: float, mantissa_bits: int) -> int:
    """The bits of the nearest bf16 that has few bits of mantissa."""
    fraction, exponent = math.frexp(value)
    steps = math.floor(math.ldexp(fraction, mantissa_bits + 1) + 0.5)
    return int(np.float32(math.ldexp(steps, exponent - mantissa_bits - 1)).view(np.uint32)) >> 16


def test_sign_of_a_group_of_equal_magnitudes(loops: Backend) -> None:
    """The scale of equal magnitudes is that magnitude: it must not shrink with the group."""
    for size in range(1, GROUP + 1):
        values = np.where(np.arange(size) % 3 == 0, np.float32(-0.75), np.float32(0.75))
        assert groups(loops, "sign", values, [size]) == (np.sign(values).tolist(), [0x3F40]), size


@pytest.mark.parametrize("size", [1, 2, 3, 7, 63, 64, 65, 100, 126, 127])
def test_sign_scale_is_that_of_the_group_alone(loops: Backend, size: int) -> None:
    """Squares by magnitudes, as integers up to 2047, rounded to four bits of mantissa; a full group of far larger values stands before."""
    values = np.random.default_rng(size).uniform(-1, 1, size).astype(np.float32)
    largest = np.abs(values).max()
    integers = [abs(int(np.rint(value * (np.float32(2047) / largest)))) for value in values]
    expected = coarse(float(np.float32(sum(i * i for i in integers) / sum(integers) * (float(largest) / 2047))), 4)
    before = np.full(GROUP, 1e6, np.float32)
    codes, scales = groups(loops, "sign", np.concatenate([before, values]), [GROUP + size])
    assert scales[1] == expected and codes[GROUP:] == [-1 if value < 0 else 1 for value in values]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("law", ["small after large", "large after small"])
def test_a_short_group_is_coded_as_if_it_stood_alone(loops: Backend, codec: str, law: str) -> None:
    """Behind full groups, behind short ones of other tiles, and first."""
    rng, spread = np.random.default_rng(3), 1e3 if law.startswith("small") else 1e-3
    counts = [300, 5, 0, 127, 128, 1, 129, 64, 2 * GROUP + 77]
    values = rng.normal(0, 1, sum(counts)).astype(np.float32)
    parts, start = [], 0
    for count in counts:
        for first in range(0, count, GROUP):
            size = min(GROUP, count - first)
            if size == GROUP:
                values[start + first : start + first + size] *= np.float32(spread)
            parts.append(values[start + first : start + first + size].copy())
        start += count
    codes, scales = groups(loops, codec, values, counts)
    alone = [groups(loops, codec, part, [len(part)]) for part in parts]
    assert codes == [code for part, _ in alone for code in part]
    assert scales == [scale for _, part in alone for scale in part]


@pytest.mark.parametrize("codec", SEARCHES)
@pytest.mark.parametrize("size", [1, 2, 5, 63, 64, 127])
def test_values_on_a_grid_are_found_again(loops: Backend, codec: str, size: int) -> None:
    """Every code times a scale of few bits comes back exactly, however few values tell of it."""
    top = SEARCHES[codec][0]
    wanted = np.resize(np.arange(-top, top), size).astype(np.float32)
    wanted[0] = -top
    full = np.full(GROUP, 3e4, np.float32)
    codes, scales = groups(loops, codec, np.concatenate([full, wanted * np.float32(0.5)]), [GROUP + size])
    step = float(np.uint32(scales[1] << 16).view(np.float32))
    assert [code * step for code in codes[GROUP:]] == (wanted * 0.5).tolist()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1, 5, 64, 127])
def test_the_decoder_gives_short_groups_their_own_scale(loops: Backend, codec: str, size: int) -> None:
    rng = np.random.default_rng(size)
    counts = np.array([GROUP + size, size, 2 * GROUP, size], np.int64)
    bits = {"sign": 1, "int8": 8, "int4": 4, "int3": 4, "int2": 2}[codec]
    top = 1 if codec == "sign" else SEARCHES[codec][0]
    drawn = np.where(rng.random(counts.sum()) < 0.5, -1, 1) if codec == "sign" else rng.integers(-top, top, counts.sum())
    codes = drawn.astype(np.int8)
    scales = np.array([0x3F80, 0x4000, 0x4080, 0x4100, 0x4180, 0x4200], np.uint16)  # 1, 2, 4, 8, 16, 32
    sizes = [GROUP, size, size, GROUP, GROUP, size]
    expected = codes * np.repeat([1.0, 2, 4, 8, 16, 32], sizes) * 0.5
    found = loops.code_values(loops.pack_codes(codes, bits), bits, scales, counts, np.float32(0.5), None)
    assert found.tolist() == expected.tolist()
