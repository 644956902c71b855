"""Buffers are one per name, type and thread; and the tests poison them, as they do all memory that is not written yet."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from support.poison import FRESH, MALLOPT

from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import SPARE


def test_a_name_is_one_array_that_grows() -> None:
    buffers = Buffers()
    first = buffers.take("x", "<u4", 100)
    assert len(first) == 100 and first.dtype == np.uint32
    assert np.shares_memory(buffers.take("x", "<u4", 50), first)
    assert not np.shares_memory(buffers.take("x", "<f4", 50), first) and not np.shares_memory(buffers.take("y", "<u4", 50), first)
    larger = buffers.take("x", "<u4", 101)
    assert len(larger) == 101 and not np.shares_memory(larger, first)


def test_each_thread_has_its_own() -> None:
    buffers, theirs = Buffers(), []
    mine = buffers.take("x", "<u4", 10)
    thread = threading.Thread(target=lambda: theirs.append(buffers.take("x", "<u4", 10)))
    thread.start()
    thread.join()
    assert len(theirs) == 1 and not np.shares_memory(mine, theirs[0])


def test_terms_have_arrays_with_room_to_spare() -> None:
    arrays = Buffers().scratch(30)
    one, other = next(arrays), next(arrays)
    assert len(one.positions) == len(one.values) == 30 + SPARE
    assert one.positions.dtype == np.uint32 and one.values.dtype == np.float32
    assert not np.shares_memory(one.positions, other.positions)


def test_what_is_taken_again_is_poisoned() -> None:
    buffers = Buffers()
    for _ in range(2):
        values = buffers.take("x", "<f4", 1000)
        assert np.isnan(values.astype(np.float32)).all()
        values[:] = 0


def test_empty_tensors_are_poisoned() -> None:
    assert torch.empty(10, 3).isnan().all() and torch.empty((), dtype=torch.bfloat16).isnan()
    assert (torch.empty(4, dtype=torch.int16) == -1).all()
    assert torch.empty(0).numel() == 0 and torch.empty(3, device="meta").is_meta


@pytest.mark.skipif(MALLOPT is None, reason="only glibc fills fresh memory")
@pytest.mark.parametrize("size", [2000, 1 << 20])
def test_empty_arrays_are_poisoned(size: int) -> None:
    assert (np.empty(size, np.uint8)[:size] == FRESH).mean() > 0.98  # the allocator's own few bytes may lie at the start
