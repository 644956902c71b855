"""Exact chunks beside the entropy of what they code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import exact
from benchmarks.exact import Tensor
from benchmarks.pairs import Pair
from deltapack.dtypes import BY_NAME
from deltapack.kernels.rounding import round_bf16

PAIR = Pair("made", Path(), Path())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_chunks_are_near_the_entropy_and_below_what_peers_need(name: str) -> None:
    rng, dtype = np.random.default_rng(0), BY_NAME[name]
    base = rng.standard_normal(1 << 19).astype(np.float32)
    tuned = base + rng.standard_normal(1 << 19).astype(np.float32) * np.float32(1e-3)
    tensors = [Tensor(base, tuned), Tensor(None, tuned[:70_000])]
    if name == "bf16":
        tensors = [Tensor(None if row.base is None else round_bf16(row.base), round_bf16(row.tuned)) for row in tensors]
    row = dict(zip(exact.SIZE_HEADERS, exact.size_row(PAIR, dtype, tensors), strict=True))
    assert 0 <= float(row["over %"] or 0) < 5
    assert float(row["exact"] or 0) < float(row["alone"] or 0) < 1
    for peer, own in (("zstd -3 --patch-from", "exact"), ("zipnn, alone", "alone")):
        assert row[peer] is None or float(row[own] or 0) < float(row[peer] or 0)
    assert row["equal, planes, dense, sparse"] == "0 1 1 0"
    speeds = exact.speed_row(PAIR, dtype, "tensors", tensors, 1)
    assert len(speeds) == len(exact.SPEED_HEADERS) and all(float(cell or 0) > 0 for cell in speeds[3:])
