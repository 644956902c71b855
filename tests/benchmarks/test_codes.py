"""Stored bytes against entropy."""

from __future__ import annotations

import pytest

from benchmarks import codes

pytestmark = pytest.mark.slow


def test_no_code_is_below_the_entropy_and_the_one_that_is_taken_is_near() -> None:
    positions, decoding, values = codes.measure(quick=True).tables
    over = {row[0]: [float(row[column] or 0) for column in (2, 4, 5)] for row in positions.rows}
    assert over.keys() == set(codes.DENSITIES)
    assert all(value > -0.5 for row in over.values() for value in row)  # the entropy is that of the law, not of the one mask
    assert over[0.05][0] < 2 and over[0.01][1] < 2 and over[0.5][2] < 0.01
    assert positions.rows[codes.DENSITIES.index(0.5)][1] == pytest.approx(1)
    assert [row[0] for row in decoding.rows] == list(codes.DENSITIES)
    assert all(float(cost or 0) > 0 for row in decoding.rows for cost in row[1:])
    for _, entropy, packed, single in values.rows:
        assert float(entropy or 0) < 8 and -0.5 < float(packed or 0) < 2 and float(single or 0) > float(packed or 0) - 0.01
