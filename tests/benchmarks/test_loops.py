"""The loops, each timed alone."""

from __future__ import annotations

import pytest

from benchmarks import loops

pytestmark = pytest.mark.slow


def test_every_stage_gets_a_time() -> None:
    table, merges, trits, choosing = loops.measure(quick=True).tables
    for other in (merges, trits, choosing):
        assert all(len(row) == len(other.headers) and min(float(cell or 0) for cell in row) > 0 for row in other.rows)
    assert [row[0] for row in table.rows] == [0.5, 0.1, 0.01]
    for row in table.rows:
        cells = dict(zip(table.headers, row, strict=True))
        sample, gaps, values, hot, cold, copy = (float(cell or 0) for cell in row[1:7])
        assert min(sample, gaps, values, hot, cold, copy) > 0
        assert cells["gaps + values + add, cold: x copy"] == pytest.approx((gaps + values + cold) / copy)
