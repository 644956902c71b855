"""What the encoder computes, by every backend: against plain Python and against each other."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import codecs
from support.backends import BACKENDS, load

from deltapack.dtypes import BY_NAME
from deltapack.kernels import Backend
from deltapack.kernels.reference.encoding import LANES, same_bits
from deltapack.kernels.rounding import convert, from_f32, to_f32

SEARCHES = {name: (search.top, search.mantissa_bits, search.candidates) for name, search in codecs.SEARCHES.items()}


def pair_of(source: str, target: str, length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(length)
    base = rng.normal(0, 0.02, length).astype(np.float32)
    tuned = base + rng.normal(0, 0.002, length).astype(np.float32)
    return from_f32(base, BY_NAME[source]), from_f32(tuned, BY_NAME[target])


@pytest.mark.parametrize(("source", "target"), [("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("f32", "bf16"), ("f64", "f64")])
@pytest.mark.parametrize("length", [1, LANES - 1, LANES, LANES + 1, 10_007])
def test_statistics_by_plain_sums(loops: Backend, source: str, target: str, length: int) -> None:
    base, tuned = pair_of(source, target, length)
    wide = [to_f32(elements, BY_NAME[name]) for elements, name in ((base, source), (tuned, target))]
    lanes = [0.0] * LANES
    for i, magnitude in enumerate(np.abs(wide[1] - wide[0]).tolist()):
        lanes[i % LANES] += magnitude
    expected = 0.0
    for lane in lanes:
        expected += lane
    l1, largest, equal = loops.compare(base, BY_NAME[source], tuned, BY_NAME[target])
    assert (l1, largest, equal) == (expected, np.abs(wide[1] - wide[0]).max(), False)
    same = convert(base, BY_NAME[source], BY_NAME[target])
    assert loops.compare(base, BY_NAME[source], same, BY_NAME[target])[2]


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 63, 64, 99])
@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_statistics_show_what_is_not_finite(loops: Backend, special: float, at: int, name: str) -> None:
    base = np.zeros(100, np.float32)
    base[at] = special
    elements = from_f32(base, BY_NAME[name])
    assert not np.isfinite(loops.compare(np.zeros_like(elements), BY_NAME[name], elements, BY_NAME[name])[1])


@pytest.mark.parametrize(
    ("name", "special"),
    [
        *(("f32", bits) for bits in (0x7FC00000, 0xFFC00000, 0x7F900000, 0x7F800000, 0xFF800000)),
        *(("bf16", bits) for bits in (0x7FC0, 0xFFFF, 0x7F90, 0x7F80, 0xFF80)),
        *(("f16", bits) for bits in (0x7E00, 0xFE01, 0x7C00, 0xFC00)),
        *(("f64", bits) for bits in (0xFFF0000000000001, 0x7FF0000000000000)),
        *(("f8_e5m2", bits) for bits in (0xFE, 0x7C)),
    ],
)
def test_what_is_the_same_is_no_difference(loops: Backend, name: str, special: int) -> None:
    """Also where subtraction would say NaN; what is not the same still shows."""
    dtype = BY_NAME[name]
    base, tuned = pair_of(name, name, 5000)
    plain = loops.difference(base, dtype, tuned, dtype).copy()
    for elements in (base, tuned):
        elements.view(f"<u{dtype.itemsize}")[100:4500] = special
    plain[100:4500] = 0
    positions = np.arange(50, 4900, 7, dtype=np.uint32)
    assert loops.difference(base, dtype, tuned, dtype).tobytes() == plain.tobytes()
    assert loops.kept_differences(base, dtype, tuned, dtype, positions).tobytes() == plain[positions].tobytes()
    _, largest, equal = loops.compare(base, dtype, tuned, dtype)
    assert largest == np.abs(plain).max() and not equal
    tuned.view(f"<u{dtype.itemsize}")[4400] = 0
    assert not np.isfinite(loops.compare(base, dtype, tuned, dtype)[1])
    assert not np.isfinite(loops.difference(base, dtype, tuned, dtype)[4400])
    assert not np.isfinite(loops.kept_differences(base, dtype, tuned, dtype, np.array([4400], np.uint32))[0])


def test_same_bits_looks_behind_the_first_elements() -> None:
    one = np.zeros(10_000, np.float32)
    other = one.copy()
    assert same_bits(one, other)
    other[-1] = -0.0
    assert not same_bits(one, other)


@pytest.mark.parametrize(("source", "target"), [("f32", "f32"), ("bf16", "f32"), ("f16", "bf16"), ("f64", "f32")])
def test_kept_differences_are_those_of_all(loops: Backend, source: str, target: str) -> None:
    base, tuned = pair_of(source, target, 5000)
    positions = np.flatnonzero(np.random.default_rng(0).random(5000) < 0.3).astype(np.uint32)
    kept = loops.kept_differences(base, BY_NAME[source], tuned, BY_NAME[target], positions)
    every = loops.difference(base, BY_NAME[source], tuned, BY_NAME[target])
    assert kept.tobytes() == every[positions].tobytes()


def of_the_largest_magnitude(values: NDArray[np.float32], top: int, mantissa_bits: int) -> tuple[int, list[int]]:
    """The scale's bits and the codes of one group where the scale is not searched for, one value at a time."""
    largest = np.abs(values).max()
    if largest < np.float32(2.0**-100):
        return 0, [0] * len(values)
    drop = (1 << 23 - mantissa_bits) - 1
    bits = min(int((largest / np.float32(top)).view(np.uint32)) + drop & ~drop, 0x7F800000 - drop - 1)
    bits |= 0x80000000 if values[np.abs(values).argmax()] > 0 else 0
    scale = np.uint32(bits).view(np.float32)
    return bits >> 16, [int(np.clip(np.rint(value / scale), -top, top - 1)) for value in values]


def best_by_plain_integers(values: NDArray[np.float32], top: int, mantissa_bits: int, candidates: int) -> tuple[int, list[int]]:
    """The same where it is: the codes of the largest cosine, by fractions, and their scale of gain 1."""
    largest = np.abs(values).max()
    if candidates == 1 or largest < np.float32(2.0**-100):
        return of_the_largest_magnitude(values, top, mantissa_bits)
    negative = values[np.abs(values).argmax()] > 0
    integers = [int(np.rint(value * (np.float32(2047) / largest))) * (-1 if negative else 1) for value in values]
    best, chosen, product = Fraction(0), [0] * len(values), 0
    for candidate in range(candidates):
        width = np.float32(2047) / np.float32(top - 0.5) * np.uint32(0x3F800000 - (candidate << 20)).view(np.float32)
        codes = [min(max(int(np.rint(np.float32(integer) * (np.float32(1) / width))), -top), top - 1) for integer in integers]
        products = sum(code * integer for code, integer in zip(codes, integers, strict=True))
        cosine = Fraction(products**2, sum(code**2 for code in codes))
        if cosine > best:
            best, chosen, product = cosine, codes, products
    scale = np.float32(sum(integer**2 for integer in integers) / product * (float(largest) / 2047))
    unit = 1 << 23 - mantissa_bits
    bits = min(int(scale.view(np.uint32)) + unit // 2 & ~(unit - 1), 0x7F800000 - unit)
    return (bits | (0x80000000 if negative else 0)) >> 16, chosen


@pytest.mark.parametrize("codec", sorted(SEARCHES))
def test_quantized_groups_by_plain_integers(loops: Backend, codec: str) -> None:
    rng = np.random.default_rng(4)
    counts = np.array([128, 0, 300, 1, 129, 7], np.int64)
    values = (rng.laplace(0, 1, counts.sum()) * np.exp2(rng.integers(-60, 60, counts.sum()) // 20 * 20)).astype(np.float32)
    values[130:140], values[428] = 0, 2.0**-101
    codes, scales = loops.quantize_groups(values, counts, *SEARCHES[codec])
    assert codes.dtype == np.int8 and scales.dtype == np.uint16
    start = group = 0
    for count in counts.tolist():
        for first in range(0, count, 128):
            size = min(128, count - first)
            part = values[start + first : start + first + size]
            assert (int(scales[group]), codes[start + first : start + first + size].tolist()) == best_by_plain_integers(
                part, *SEARCHES[codec]
            )
            group += 1
        start += count
    assert group == len(scales)


@pytest.mark.parametrize("codec", sorted(SEARCHES))
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-3, 1.0, 1e30, 1e38])
def test_backends_quantize_alike(codec: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 1000, 16)
    values = (np.clip(rng.standard_t(3, counts.sum()), -3, 3) * scale).astype(np.float32)
    one, other = (load(name).quantize_groups(values, counts, *SEARCHES[codec]) for name in BACKENDS)
    assert one[0].tobytes() == other[0].tobytes()
    assert one[1].tobytes() == other[1].tobytes()
