"""Codes and scales: in range, deterministic, of gain 1, and close to the best that any scale of that gain can do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.codecs import FLOAT_CODES, SCALED, SEARCHES, is_sign, written_range
from support.laws import examples

from deltapack.codecs.quantize import quantize
from deltapack.errors import NonFiniteError
from deltapack.kernels import reference

SEARCHING = [codec for codec, search in SEARCHES.items() if search.candidates > 1]
Floats = NDArray[np.float32]
ONE = np.float32(1)


def groups_of(law: str, groups: int = 400) -> Floats:
    rng = np.random.default_rng(11)
    draw = {
        "gaussian": lambda: rng.normal(0, 0.01, (groups, 128)),
        "laplace": lambda: rng.laplace(0, 1e-3, (groups, 128)),
        "student": lambda: rng.standard_t(3, (groups, 128)) * 1e-4,
        "uniform": lambda: rng.uniform(-1, 1, (groups, 128)),
    }
    return draw[law]().astype(np.float32)


def decoded(codes: NDArray[np.generic], scales: NDArray[np.uint16], counts: NDArray[np.int64]) -> Floats:
    return reference.code_values(codes.view(np.uint8), 8, scales, counts, ONE)


def coded(codec: str, values: Floats, counts: NDArray[np.int64] | None = None) -> Floats:
    """What a decoder sees."""
    counts = np.array([values.size], np.int64) if counts is None else counts
    codes, scales = quantize(codec, values.reshape(-1), counts)
    return decoded(codes, scales, counts).reshape(values.shape)


def squared_errors(values: Floats, seen: Floats) -> NDArray[np.float64]:
    return np.asarray(np.square(values.astype(np.float64) - seen).sum(axis=-1))


def errors_of_step(values: Floats, steps: NDArray[np.float64], low: int, high: int) -> NDArray[np.float64]:
    """Squared error of each group `[groups, 128]` with a step `[groups]` of any sign, where the step is the scale."""
    wide, column = values.astype(np.float64), steps[:, None]
    return np.asarray(np.square(wide - np.clip(np.rint(wide / column), low, high) * column).sum(axis=1))


def errors_of_gain_one(values: Floats, steps: NDArray[np.float64], low: int, high: int) -> NDArray[np.float64]:
    """The same where the scale of the codes that the step gives is the one of gain 1."""
    wide = values.astype(np.float64)
    codes = np.clip(np.rint(wide / steps[:, None]), low, high)
    scales = np.square(wide).sum(axis=1) / (codes * wide).sum(axis=1)
    return np.asarray(np.square(wide - codes * scales[:, None]).sum(axis=1))


def gains(values: Floats, seen: Floats) -> NDArray[np.float64]:
    """How much of each group is seen, along the values: 1 is all of it."""
    wide = values.astype(np.float64)
    return np.asarray((seen * wide).sum(axis=-1) / np.square(wide).sum(axis=-1))


def best_errors(values: Floats, low: int, high: int) -> NDArray[np.float64]:
    """The least squared error at gain 1 over a fine grid of steps; the largest magnitude takes the side with one more code."""
    wide = values.astype(np.float64)
    extreme = np.take_along_axis(wide, np.abs(wide).argmax(axis=1)[:, None], axis=1)[:, 0]
    found = np.full(len(values), np.inf)
    for share in np.geomspace(0.2, 1.4, 300):
        found = np.minimum(found, errors_of_gain_one(values, share * extreme / low, low, high))
    return found


@pytest.mark.parametrize("codec", SCALED)
@pytest.mark.parametrize("kept", [[0], [1], [127, 0, 128], [129, 1], [300, 300]])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-30, 1e-3, 1.0, 1e30, 1e38])
def test_codes_and_scales_are_in_range(codec: str, kept: list[int], scale: float) -> None:
    counts = np.array(kept, np.int64)
    values = (np.random.default_rng(3).uniform(-1, 1, counts.sum()) * scale).astype(np.float32)
    codes, scales = quantize(codec, values, counts)
    low, high = written_range(codec)
    assert codes.dtype == np.int8
    assert len(codes) == counts.sum()
    assert len(scales) == len(reference.group_counts(counts))
    assert not len(codes) or (low <= codes.min() and codes.max() <= high)
    assert not is_sign(codec) or codes.all()
    assert np.isfinite((scales.astype(np.uint32) << 16).view(np.float32)).all()
    # No decoded value is much larger than what went in; the two steps of int2 go furthest.
    seen = decoded(codes, scales, counts)
    assert not len(seen) or np.abs(seen).max() <= 2 * np.float64(np.abs(values).max())


@pytest.mark.parametrize("codec", SCALED)
def test_zeros_stay_zero(codec: str) -> None:
    values = np.zeros(200, np.float32)
    values[128:] = 1
    seen = coded(codec, values)
    assert not seen[:128].any()
    assert not coded(codec, np.float32(2.0**-101) * values).any()


@pytest.mark.parametrize("codec", SEARCHING)
@pytest.mark.parametrize("law", ["gaussian", "laplace", "student"])
def test_error_is_within_four_percent_of_the_best_scale(codec: str, law: str) -> None:
    values = groups_of(law)
    found, best = squared_errors(values, coded(codec, values)), best_errors(values, *written_range(codec))
    assert found.sum() <= 1.04 * best.sum()


@pytest.mark.parametrize("codec", [*SEARCHING, "sign"])
@pytest.mark.parametrize("law", ["gaussian", "laplace", "student", "uniform"])
def test_the_gain_is_one(codec: str, law: str) -> None:
    """Of each group to what its scale is rounded to, and without bias over many; least squares gave sign .65 and int3 .965."""
    values = groups_of(law)
    found = gains(values, coded(codec, values))
    assert np.abs(found - 1).max() <= 2**-5 + 2**-9
    assert abs(np.mean(found) - 1) < 0.004


@pytest.mark.parametrize("codec", [codec for codec in SEARCHING if SEARCHES[codec].top <= 8])
@pytest.mark.parametrize("law", ["gaussian", "laplace", "student"])
def test_error_of_no_group_is_above_that_of_the_largest_magnitude(codec: str, law: str) -> None:
    """Against the usual symmetric scale, largest / (2^(bits-1) - 1), which is not rounded to few bits as ours is."""
    values, (low, high) = groups_of(law), written_range(codec)
    found = squared_errors(values, coded(codec, values))
    usual = errors_of_gain_one(values, np.abs(values).max(axis=1).astype(np.float64) / high, low, high)
    rounding = np.square(values, dtype=np.float64).sum(axis=1) * 2.0**-10  # of a scale to four bits
    assert np.all(found <= 1.01 * usual + rounding)
    assert found.sum() < 0.75 * usual.sum()


@pytest.mark.parametrize("law", ["gaussian", "laplace", "student", "uniform"])
def test_int8_error_is_that_of_the_largest_magnitude(law: str) -> None:
    values = groups_of(law)
    usual = errors_of_step(values, np.abs(values).max(axis=1).astype(np.float64) / 127, -128, 127)
    assert squared_errors(values, coded("int8", values)).sum() <= 1.005 * usual.sum()


def test_int8_error_is_below_its_step() -> None:
    values = groups_of("gaussian")
    step = np.abs(values).max(axis=1, keepdims=True) / 128 * (1 + 2**-7)
    error = np.abs(coded("int8", values).astype(np.float64) - values)
    # The one value at the end without a code, 128 steps, may be a step off.
    assert np.all(error <= 1.001 * step)
    assert np.mean(error > 0.501 * step) < 0.01


@pytest.mark.parametrize("law", ["gaussian", "laplace", "student"])
def test_sign_scale_is_that_of_gain_one(law: str) -> None:
    values = groups_of(law)
    seen = coded("sign", values)
    assert np.array_equal(np.signbit(seen), np.signbit(values))
    wide = values.astype(np.float64)
    expected = np.square(wide).sum(axis=1) / np.abs(wide).sum(axis=1)
    assert np.all(np.abs(np.abs(seen[:, 0]) / expected - 1) < 2**-5 + 2**-9)


@pytest.mark.parametrize("codec", SEARCHES)
@pytest.mark.parametrize("value", [0.37, -0.37])
def test_single_values_are_close(codec: str, value: float) -> None:
    """A group of one: the scale alone carries the value, to its few bits of mantissa."""
    values = np.array([value], np.float32)
    assert abs(coded(codec, values)[0] - values[0]) <= abs(value) / 16


@examples(100)
@given(
    st.sampled_from(SCALED),
    st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=150),
)
def test_any_group(codec: str, numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    codes, _ = quantize(codec, values, np.array([len(values)], np.int64))
    low, high = written_range(codec)
    assert low <= codes.min()
    assert codes.max() <= high
    seen = coded(codec, values)
    assert np.isfinite(seen).all()
    for start in range(0, len(values), 128):
        group = values[start : start + 128]
        if np.abs(group).max() >= 2.0**-100:  # 1 to the rounding of its scale, and of values to 11 bits
            assert abs(gains(group, seen[start : start + 128]) - 1) < 2**-4


@pytest.mark.parametrize("codec", SCALED)
def test_groups_do_not_touch_each_other(codec: str) -> None:
    values = groups_of("gaussian", 5)
    alone = [coded(codec, group) for group in values]
    assert coded(codec, values).tobytes() == np.stack(alone).tobytes()
    counts = np.array([128] * 5, np.int64)
    assert coded(codec, values.reshape(-1), counts).tobytes() == np.stack(alone).tobytes()


@pytest.mark.parametrize("codec", SCALED)
def test_negated_values_give_negated_results(codec: str) -> None:
    values = groups_of("laplace", 20)
    assert np.array_equal(coded(codec, -values), -coded(codec, values))


def test_float_codecs_round_and_have_no_scales() -> None:
    values = groups_of("gaussian", 2).reshape(-1)
    counts = np.array([256], np.int64)
    for codec, dtype in FLOAT_CODES.items():
        codes, scales = quantize(codec, values, counts)
        assert codes.dtype.itemsize == dtype.itemsize
        assert len(scales) == 0
    assert quantize("f32", values, counts)[0].tobytes() == values.tobytes()


@pytest.mark.parametrize(("codec", "value"), [("f16", 65520.0), ("bf16", 3.4e38), ("f16", -1e30)])
def test_overflow_of_a_float_codec(codec: str, value: float) -> None:
    with pytest.raises(NonFiniteError, match=codec):
        quantize(codec, np.array([0, value], np.float32), np.array([2], np.int64))
