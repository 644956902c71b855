"""Byte planes."""

from __future__ import annotations

import numpy as np
import pytest

from deltapack.codecs.planes import join_planes, split_planes


@pytest.mark.parametrize("storage", ["<f8", "<f4", "<f2", "<u2", "|u1", "|i1", "<i8"])
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_round_trip(storage: str, count: int) -> None:
    raw = np.random.default_rng(count).bytes(count * np.dtype(storage).itemsize)
    elements = np.frombuffer(raw, storage)
    planes = split_planes(elements)
    size = np.dtype(storage).itemsize
    assert planes == b"".join(raw[plane::size] for plane in range(size))
    joined = join_planes(planes, storage)
    assert joined.dtype == np.dtype(storage)
    assert joined.tobytes() == raw
