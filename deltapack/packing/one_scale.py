"""The scale of a tensor whose codes share one, and from which magnitude on trits are not 0.

What matters is what a decoder restores on the whole: the scale makes the projection of the coded differences on the differences themselves
as long as these are (a gain of 1). Least squares would make it shorter, which no factor for what was dropped could make up for.
"""

from __future__ import annotations

import numpy as np

from deltapack import kernels
from deltapack.codecs.scaling import Scaling
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels.layout import Values
from deltapack.kernels.reference.scaling import LEVEL_OFFSET, MOST_LEVEL

__all__ = ["one_scale"]

_NOT_ZERO = 0.22
"""Share of the trits that are not 0: the larger values say most for their bits, and with fewer the error is no longer noise."""
TINY = float(np.finfo(np.float32).tiny)


def one_scale(codec: str, differences: Values, chosen: bool) -> Scaling:
    """Return the scale for `ternary` or `uniform`.

    Args:
        codec: Value codec.
        differences: Of the tensor, `[n] f32`, like all that might be kept.
        chosen: Whether these were kept for their magnitude; no trit is 0 then unless its difference is.
    """
    magnitudes = np.abs(differences)
    power = float(np.square(magnitudes, dtype=np.float64).sum())
    if not 0 < power < np.inf:
        return Scaling("tensor", 0.0)
    if VALUE_CODECS[codec].coding == "levels":
        step = float(np.sqrt(power / len(magnitudes)))
        levels = np.minimum(np.floor(magnitudes / np.float32(step) + np.float32(LEVEL_OFFSET)), MOST_LEVEL)
        return _scaled(power, float(np.multiply(levels, magnitudes, dtype=np.float64).sum()), step)
    least = TINY if chosen else _cut(differences)
    return _scaled(power, float(magnitudes[magnitudes >= least].sum(dtype=np.float64)), least)


def _cut(differences: Values) -> float:
    """Return the magnitude from which on trits are not 0, to seven bits."""
    counts = kernels.active().histogram_high(differences)
    above = np.cumsum(counts[::-1])[::-1]
    wanted = min(_NOT_ZERO * len(differences), above[0])
    high = np.flatnonzero(above >= wanted)[-1]
    return max(TINY, float(np.uint32(high << 16).view(np.float32)))


def _scaled(power: float, projection: float, threshold: float) -> Scaling:
    """Return the scale of gain 1, for codes whose product with the differences, at a scale of 1, is `projection`."""
    scale = float(np.float32(power / projection)) if projection else 0.0
    return Scaling("tensor", scale, threshold=threshold / scale) if 0 < scale < np.inf else Scaling("tensor", 0.0)
