"""What comes back of a fine-tune is neither more nor less of it than there was, whatever is dropped, coded and rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.builders import FLOATS, Model, cast

import deltapack
from deltapack.format.codecs import VALUE_CODECS

PackOf = Callable[..., Path]
Restore = Callable[..., Model]
Wide = NDArray[np.float64]
SHAPE = (192, 128)
RATES = (0.0, 0.5, 0.9)
SCALES, NARROW = 0.005, 0.04
"""What scales of four bits may be off over a tensor, and elements of one byte by where values fall on their grid."""


def tensors() -> tuple[Model, Model]:
    """A base and a fine-tune: each element type at each drop rate; differences are large enough for the narrowest type."""
    base, tuned = {}, {}
    for seed, name in enumerate(FLOATS):
        for rate in RATES:
            rng = np.random.default_rng(seed)
            base[f"{name} {rate}"] = cast(rng.normal(0, 1, SHAPE), name)
            tuned[f"{name} {rate}"] = cast(base[f"{name} {rate}"].f64 + rng.laplace(0, 0.2, SHAPE), name)
    return base, tuned


def gain_of(delta: Wide, restored: Wide) -> float:
    return float((delta * restored).sum() / np.square(delta).sum())


def standard_error(delta: Wide, rate: float) -> float:
    """Of the gain, by which elements a mask happens to keep: each counts by the square of its difference."""
    squares = np.square(delta)
    return float(np.sqrt(rate / (1 - rate) * np.square(squares).sum()) / squares.sum())


@pytest.mark.parametrize("values", VALUE_CODECS)
def test_restored_differences_have_gain_one(pack_of: PackOf, applied: Restore, values: str) -> None:
    base, tuned = tensors()
    rates = [deltapack.Override(f".* {rate}", drop_rate=rate) for rate in RATES]
    restored = applied(pack_of(base, tuned, values=values, overrides=rates))
    for name in tuned:
        delta, rate = tuned[name].f64 - base[name].f64, float(name.split()[1])
        off = gain_of(delta, restored[name].f64 - base[name].f64) - 1
        assert abs(off) <= 4 * standard_error(delta, rate) + (NARROW if name.startswith("f8") else SCALES), (name, off)
