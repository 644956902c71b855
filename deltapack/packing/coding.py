"""What trits, signs and levels make of a sample of differences: thresholds and steps, the gain that is due, bits and noise.

A code that rounds loses a part of what it codes, in proportion: what is restored is multiplied with the projection gain |x|^2 / <S, x> of
the code S, which makes up for it as 1/(1-p) does for what is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.reference.scaling import LEVEL_OFFSET, MOST_LEVEL
from deltapack.packing.gaussian import NON_ZERO, TRIT_STAGE

__all__ = ["Fitted", "fit_levels", "fit_signs", "fit_trits"]

Sample = NDArray[np.float32]

_LEVEL_STAGE = 1.004
"""Bits of levels over their entropy."""
_FINEST = 16.0
"""Steps in a standard deviation beyond which nothing is gained: the noise is 0.03 %."""
_MOST_CLIPPED, _FINER = 1e-4, 1.25
"""Share of the power that the largest level may cut off, and by how much steps grow until it does not."""
_JUST_BELOW = 1 - 2.0**-20
"""So that what is equal to a threshold is above its product with the scale, however that is rounded."""
_LARGEST = float(np.finfo(np.float32).max)
_SEARCHED, _ROUNDS = 1 << 16, 20
_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Fitted:
    """How the elements of a sample are coded, and what that makes of them.

    Attributes:
        scale: What a code of 1 stands for, before the gain.
        threshold: From which magnitude on, in scales, an element is not 0.
        gain: The projection gain.
        bits: Bits of a code.
        power: Power of the code with its gain, relative to the sample's: noise, where no element is dropped, is so much less 1.
    """

    scale: float
    threshold: float
    gain: float
    bits: float
    power: float

    def noise(self, density: float) -> float:
        """Return the squared error, relative to the power, where this share of the elements is kept at random."""
        return self.power / density - 1


def fit_trits(sample: Sample, share: float = NON_ZERO) -> Fitted | None:
    """Return the trits of which about `share` are not zero; `None` where the sample is nothing but zeros.

    Differences of narrow types lie on a grid, so that many magnitudes are equal: of the thresholds next to the wanted one that is taken
    whose share is nearest by ratio. Fewer would leave less noise in as many bits, but noise that is no chance, which hurts a model.
    """
    magnitudes = np.abs(sample)
    few = magnitudes[:: max(1, len(magnitudes) // _SEARCHED)]
    at = few[few > 0]
    if not len(at):
        few = magnitudes
        at = few[few > 0]
        if not len(at):
            return None
    wanted = max(1, round(share * len(few)))
    if wanted >= len(at):
        return _trits(magnitudes, float(at.min()))
    edge = np.partition(at, len(at) - wanted)[len(at) - wanted]
    above = at[at > edge]
    candidates = [float(edge), *([float(above.min())] if len(above) else [])]
    shares = [float((few >= np.float32(threshold)).mean()) for threshold in candidates]
    return _trits(magnitudes, min(zip(shares, candidates, strict=True), key=lambda one: abs(math.log(one[0] / share)))[1])


def _trits(magnitudes: Sample, threshold: float) -> Fitted:
    large = magnitudes[magnitudes >= np.float32(threshold)]
    share = len(large) / len(magnitudes)
    total = _sum(large)
    scale = _f32(total / len(large))
    power = _sum(np.square(magnitudes, dtype=np.float64))  # in f32 those of 1e20 are infinite, and those of 1e-30 are 0
    gain = power / (scale * total)
    return Fitted(
        scale,
        threshold * _JUST_BELOW / scale,
        gain,
        TRIT_STAGE * _entropy(np.array([1 - share, share / 2, share / 2])),
        gain * len(large) * scale / total,
    )


def fit_signs(power: float, total: float, scaled: float) -> Fitted:
    """Return signs with a scale for each row.

    Args:
        power: Sum of squares of the elements.
        total: Sum of their magnitudes, each times the scale of its row.
        scaled: Sum of the squared scales of their rows.
    """
    gain = power / total if total > 0 else 1.0
    return Fitted(1.0, 1.0, gain, 1.0, gain * gain * scaled / power if power > 0 else 1.0)


def fit_levels(sample: Sample, rate: float, weights: NDArray[np.float64] | float = 1.0) -> Fitted | None:
    """Return the levels of a uniform quantiser with a dead zone that take `rate` bits an element, or the finest.

    `None` as above, and where f32 has no step so small.

    Args:
        sample: Elements, in units of the scales of their rows where these have some.
        rate: Bits.
        weights: The squares of these scales.
    """
    power = _sum(np.square(sample, dtype=np.float64) * weights)
    if not power > 0:
        return None
    deviation = math.sqrt(_sum(np.square(sample, dtype=np.float64)) / len(sample))
    few = sample[:: max(1, len(sample) // _SEARCHED)]
    low, high = deviation / _FINEST, 8 * deviation
    while low < high / 2 and _clipped(sample, low) > _MOST_CLIPPED * deviation * deviation * len(sample):
        low *= _FINER
    for _ in range(_ROUNDS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _bits_of(_levels(few, middle)) > rate else (low, middle)
    step = _f32(high)
    if step == 0:
        return None
    levels = _levels(sample, step)
    product = step * _sum(sample.astype(np.float64) * levels * weights)
    if not product > 0:
        return None
    gain = power / product
    squares = _sum(np.square(levels, dtype=np.float64) * weights) * step * step
    return Fitted(step, 1.0, gain, _bits_of(levels), gain * gain * squares / power)


def _clipped(sample: Sample, step: float) -> float:
    """Return the squared error of what is beyond the largest level."""
    return _sum(np.square(np.maximum(np.abs(sample, dtype=np.float64) - MOST_LEVEL * step, 0)))


def _levels(sample: Sample, step: float) -> NDArray[np.int64]:
    sizes = np.minimum(np.floor(np.abs(sample, dtype=np.float64) / step + float(LEVEL_OFFSET)), MOST_LEVEL).astype(np.int64)
    return np.where(sample < 0, -sizes, sizes)


def _bits_of(levels: NDArray[np.int64]) -> float:
    return _LEVEL_STAGE * _entropy(np.bincount(levels + MOST_LEVEL) / max(1, len(levels)))


def _entropy(shares: NDArray[np.float64]) -> float:
    there = shares[shares > 0]
    return max(float(-(there * np.log2(there)).sum()), _LEAST_SHARE)


def _sum(values: NDArray[Any]) -> float:
    return float(values.sum(dtype=np.float64))


def _f32(value: float) -> float:
    return float(np.float32(min(value, _LARGEST)))
