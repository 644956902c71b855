"""Codes fitted to samples: their gain, their bits, their noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from deltapack.kernels.reference.scaling import LEVEL_OFFSET
from deltapack.packing.coding import fit_levels, fit_signs, fit_trits

Sample = NDArray[np.float32]


def gaussian(count: int = 400_000, seed: int = 0) -> Sample:
    return np.random.default_rng(seed).normal(scale=3e-4, size=count).astype(np.float32)


def on_a_grid(count: int = 400_000) -> Sample:
    """Differences of bf16 weights: few magnitudes, half of them zero."""
    return (np.round(gaussian(count) / 5e-4) * 5e-4).astype(np.float32)


def heavy(count: int = 400_000) -> Sample:
    return (np.random.default_rng(1).standard_t(3, count) * 1e-4).astype(np.float32)


SAMPLES = {"gaussian": gaussian(), "grid": on_a_grid(), "heavy": heavy()}


@pytest.mark.parametrize("name", SAMPLES)
def test_trits_with_their_gain_keep_all_of_the_difference(name: str) -> None:
    sample = SAMPLES[name]
    fitted = fit_trits(sample)
    assert fitted is not None
    scale = np.float32(fitted.scale)
    codes = np.where(np.abs(sample) >= np.float32(fitted.threshold) * scale, np.sign(sample), 0)
    restored = fitted.gain * fitted.scale * codes
    power = float(np.square(sample, dtype=np.float64).sum())
    assert float((restored * sample).sum()) == pytest.approx(power, rel=1e-5)
    assert float(np.square(restored - sample).sum()) / power == pytest.approx(fitted.noise(1.0), rel=1e-4)
    mask = np.random.default_rng(5).random(len(sample)) < 0.1
    assert float(np.square(10 * restored * mask - sample).sum()) / power == pytest.approx(fitted.noise(0.1), rel=0.03)


def test_trits_of_a_gaussian() -> None:
    fitted = fit_trits(gaussian())
    assert fitted is not None
    assert fitted.bits == pytest.approx(1.0, abs=0.002) and fitted.power == pytest.approx(1.555, abs=0.01)
    more = fit_trits(gaussian(), 0.4)
    assert more is not None and more.power < fitted.power and more.bits > fitted.bits


def test_few_changed_elements_make_few_bits() -> None:
    sample = np.zeros(10_000, np.float32)
    sample[::100] = gaussian(100)
    fitted = fit_trits(sample)
    assert fitted is not None and fitted.bits < 0.12 and fitted.threshold > 0
    assert fit_trits(np.zeros(100, np.float32)) is None and fit_levels(np.zeros(100, np.float32), 2.0) is None


def test_equal_magnitudes_are_all_or_none() -> None:
    fitted = fit_trits(np.array([1, -1, 1, 1, -1, 1, 0, 0, 0, 0], np.float32))
    assert fitted is not None and (fitted.scale, fitted.gain) == (1.0, 1.0)
    assert 0.999 < fitted.threshold < 1


@pytest.mark.parametrize("rate", [1.3, 2.0, 2.1])
@pytest.mark.parametrize("name", SAMPLES)
def test_levels_take_the_bits_that_there_are(name: str, rate: float) -> None:
    sample = SAMPLES[name]
    fitted = fit_levels(sample, rate)
    assert fitted is not None
    assert fitted.bits <= rate * 1.01
    assert name == "grid" or fitted.bits >= rate * 0.97
    levels = np.sign(sample) * np.floor(np.abs(sample) / fitted.scale + LEVEL_OFFSET)
    restored = fitted.gain * fitted.scale * levels
    power = float(np.square(sample, dtype=np.float64).sum())
    assert float((restored * sample).sum()) == pytest.approx(power, rel=1e-4)
    assert float(np.square(restored - sample).sum()) / power == pytest.approx(fitted.noise(1.0), rel=2e-3)


def test_levels_of_a_gaussian_and_the_finest_ones() -> None:
    fitted = fit_levels(gaussian(), 2.0)
    assert fitted is not None and fitted.noise(1.0) == pytest.approx(0.105, abs=0.01)
    finest = fit_levels(gaussian(), 100.0)
    assert finest is not None and finest.noise(1.0) < 5e-4 and finest.bits == pytest.approx(math.log2(16) + 2.05, abs=0.05)


def test_signs_with_a_scale_a_row() -> None:
    rows = np.random.default_rng(3).normal(size=(50, 400)) * np.linspace(0.1, 5, 50)[:, None]
    scales = np.sqrt(np.square(rows).mean(1))
    fitted = fit_signs(float(np.square(rows).sum()), float((np.abs(rows) * scales[:, None]).sum()), float(400 * np.square(scales).sum()))
    restored = fitted.gain * np.sign(rows) * scales[:, None]
    power = np.square(rows).sum()
    assert float((restored * rows).sum()) == pytest.approx(power)
    assert float(np.square(restored - rows).sum() / power) == pytest.approx(fitted.noise(1.0))
    assert fit_signs(0.0, 0.0, 0.0).gain == 1.0
