"""Conversions, bit for bit against torch where torch and the specification agree, and against plain scalars elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.backends import unsigned
from vectors import scalar

from deltapack.dtypes import BY_NAME
from deltapack.kernels.rounding import convert, from_f32, from_f64, quiet_nan, round_bf16, to_f32, to_f64

FLOATS = ["f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"]
TORCH = {name: getattr(torch, BY_NAME[name].torch) for name in FLOATS}
NAN = {"f64": 0x7FF8 << 48, "f32": 0x7FC00000, "f16": 0x7E00, "bf16": 0x7FC0, "f8_e4m3fn": 0x7F, "f8_e5m2": 0x7E}
LARGEST_F8 = {"f8_e4m3fn": 448.0, "f8_e5m2": 57344.0}


def all_elements(name: str) -> NDArray[np.generic]:
    """Every element of a type of one or two bytes."""
    size = BY_NAME[name].itemsize
    return np.arange(256**size, dtype=f"<u{size}").view(BY_NAME[name].storage)


def random_f32() -> NDArray[np.float32]:
    """Random bits, and the neighbourhood of every value and every middle that matters to a narrow type."""
    bits = np.random.default_rng(5).integers(0, 1 << 32, 1_000_000, np.uint32)
    near = [to_f32(all_elements(name), BY_NAME[name]) for name in ("f16", "bf16", "f8_e4m3fn", "f8_e5m2")]
    middles = []
    for values in near:
        ordered = np.unique(values[np.isfinite(values)])
        with np.errstate(over="ignore"):
            middles.append((ordered[:-1] / 2 + ordered[1:] / 2).astype(np.float32))
    points = np.concatenate([*near, *middles]).view(np.uint32)
    return np.concatenate([bits, points, points + np.uint32(1), points - np.uint32(1)]).view(np.float32)


def by_torch(values: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    return unsigned(torch.from_numpy(values.copy()).to(TORCH[name]).view(torch.uint8).numpy()).view(BY_NAME[name].storage)


@pytest.mark.parametrize("name", ["f16", "bf16", "f8_e4m3fn", "f8_e5m2"])
def test_every_narrow_element_as_f32(name: str) -> None:
    elements = all_elements(name)
    expected = torch.from_numpy(unsigned(elements).copy()).view(TORCH[name]).float().numpy()
    found = to_f32(elements, BY_NAME[name])
    assert found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    numbers = ~np.isnan(expected)
    assert np.array_equal(unsigned(found[numbers]), unsigned(expected[numbers]))
    assert np.array_equal(to_f64(elements, BY_NAME[name])[numbers], expected[numbers].astype(np.float64))


@pytest.mark.parametrize("name", FLOATS)
def test_every_element_comes_back(name: str) -> None:
    """Exact for numbers; NaN becomes the one quiet NaN."""
    size = BY_NAME[name].itemsize
    bits = np.random.default_rng(size).integers(0, 256, 80_000, np.uint8).view(f"<u{size}")
    elements = all_elements(name) if size < 4 else bits.view(BY_NAME[name].storage)
    wide = to_f64(elements, BY_NAME[name])
    back = from_f64(wide, BY_NAME[name])
    # E5M2 infinities saturate like every overflow.
    numbers = np.isfinite(wide) if name == "f8_e5m2" else ~np.isnan(wide)
    assert np.array_equal(unsigned(back)[numbers], unsigned(elements)[numbers])
    assert np.all(unsigned(back)[np.isnan(wide)] == NAN[name])
    assert unsigned(quiet_nan(BY_NAME[name])) == NAN[name]


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_f32_to_16_bits(name: str) -> None:
    values = random_f32()
    found, numbers = unsigned(from_f32(values, BY_NAME[name])), ~np.isnan(values)
    assert np.array_equal(found[numbers], unsigned(by_torch(values, name))[numbers])
    assert np.all(found[~numbers] == NAN[name])


@pytest.mark.parametrize(("name", "overflow"), [("f8_e4m3fn", 464.0), ("f8_e5m2", 61440.0)])
def test_f32_to_8_bits(name: str, overflow: float) -> None:
    """torch agrees below the overflow; from there on the specification saturates."""
    values = random_f32()
    found, magnitude = unsigned(from_f32(values, BY_NAME[name])), np.abs(values)
    inside = magnitude < overflow
    assert np.count_nonzero(inside) > 500_000
    assert np.array_equal(found[inside], unsigned(by_torch(values, name))[inside])
    outside = magnitude >= overflow
    largest = unsigned(by_torch(np.array([LARGEST_F8[name]], np.float32), name))[0]
    assert np.array_equal(found[outside], np.where(np.signbit(values[outside]), largest | 0x80, largest))
    assert np.all(found[np.isnan(values)] == NAN[name])


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "value", [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-45, 3.4e38, 448.0, 464.0, 465.0, 57344.0, 61440.0]
)
def test_special_values_by_plain_scalars(name: str, value: float) -> None:
    values = np.array([value], np.float32)
    expected = scalar.element(name, float(values[0]))
    assert unsigned(from_f32(values, BY_NAME[name]))[0] == expected
    assert unsigned(from_f64(values.astype(np.float64), BY_NAME[name]))[0] == expected


@pytest.mark.parametrize("name", FLOATS)
def test_f64_goes_through_f32(name: str) -> None:
    """Also where that rounds twice: 1 + 2^-8 + 2^-40 is above the middle of two bf16, but its f32 is the middle."""
    bits = np.random.default_rng(2).integers(0, 1 << 64, 2000, np.uint64)
    scaled = np.random.default_rng(3).normal(0, 10, 2000) * np.exp2(np.random.default_rng(4).integers(-20, 20, 2000))
    values = np.concatenate([bits.view(np.float64), scaled, [1 + 2**-8 + 2**-40, 1 + 2**-11 + 2**-40, 1 + 2**-4 + 2**-40]])
    found = unsigned(from_f64(values, BY_NAME[name]))
    assert found.tolist() == [scalar.element(name, value) for value in values.tolist()]
    if name == "bf16":
        assert found[-3] == 0x3F80


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_convert_by_plain_scalars(source: str, target: str) -> None:
    size = BY_NAME[source].itemsize
    bits = np.random.default_rng(8).integers(0, 256, 256 * size, np.uint8).view(f"<u{size}")
    if size > 1:
        # Small exponents too, which random bits rarely have.
        near_one = np.random.default_rng(9).normal(0, 4, 300)
        bits = np.concatenate([bits, unsigned(from_f64(near_one, BY_NAME[source]))])
    elements = bits.view(BY_NAME[source].storage)
    found = convert(elements, BY_NAME[source], BY_NAME[target])
    if source == target:
        assert found is elements
        return
    assert found.dtype == np.dtype(BY_NAME[target].storage)
    assert unsigned(found).tolist() == [scalar.element(target, scalar.number(source, bit)) for bit in bits.tolist()]


def test_round_bf16_leaves_its_input_alone() -> None:
    values = np.array([1.00390625, np.nan], np.float32)
    values.flags.writeable = False
    assert round_bf16(values).tolist() == [0x3F80, 0x7FC0]
