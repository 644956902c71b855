"""What a tensor is made of: rows that several packs have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import TORCH, mean, random_tensor

from deltapack.composing import tensor_job
from deltapack.dtypes import BY_NAME, DType

SMALL = 8
"""Elements of a chunk."""


@dataclass(frozen=True)
class Stored:
    """Rows in memory, as a pack would store them after `start` elements."""

    dtype: DType
    elements: np.ndarray[Any, Any]
    start: int

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        assert stop - start <= max(SMALL, 20), "it reads a chunk at a time"
        return self.elements[start - self.start : stop - self.start]


@given(data=st.data(), width=st.integers(1, 20), count=st.integers(1, 12), dtype=st.sampled_from(sorted(TORCH)))
def test_rows_of_several_packs(data: st.DataObject, width: int, count: int, dtype: str) -> None:
    """A row is its owner's to the bit, or the mean; however the range is cut, and in whatever order a pack has the rows."""
    owners, start = [], 7 * width
    for number in range(data.draw(st.integers(1, 3))):
        more = random_tensor(number, (count + 4, width), dtype)
        places = data.draw(st.permutations(range(count + 4)))[:count]
        lacking = data.draw(st.sets(st.integers(0, count - 1))) if number else set()
        held = [-1 if key in lacking else start // width + place for key, place in enumerate(places)]
        owners.append((Stored(BY_NAME[dtype], more.bits.reshape(-1), start), np.array(held, np.int64)))
    rows = tensor_job.UnitedRows(BY_NAME[dtype], start, width, tuple(owners))  # type: ignore[arg-type]
    wanted = []
    for key in range(count):
        own = [stored.read(held[key] * width, (held[key] + 1) * width) for stored, held in owners if held[key] >= 0]
        wanted.append(own[0] if len(own) == 1 else mean(own, dtype).bits)
    low = data.draw(st.integers(0, count * width - 1))
    high = data.draw(st.integers(low + 1, count * width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_job, "CHUNK", SMALL)
        assert rows.read(start + low, start + high).tobytes() == np.concatenate(wanted)[low:high].tobytes()
