"""Scales of rows and columns by every backend: against plain Python, and against each other; codes made with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.backends import BACKENDS, load

from deltapack.kernels import Backend
from deltapack.kernels.layout import Lines

KINDS = ("tensor", "rows", "outer")
NONE = np.zeros(0, np.float32)


def lines_of(kind: str, rows: int, width: int, seed: int = 0, dropped: float = 0.2) -> Lines:
    rng = np.random.default_rng(seed)
    of_rows = np.exp2(rng.integers(-128, 127, rows) / 8).astype(np.float32) * (rng.random(rows) >= dropped)
    of_columns = np.exp2(rng.integers(-128, 127, width) / 8).astype(np.float32)
    return Lines(
        float(np.float32(0.0123)),
        NONE if kind == "tensor" else of_rows.astype(np.float32),
        of_columns if kind == "outer" else NONE,
        1 if kind == "tensor" else width,
    )


def some_positions(length: int, share: float, seed: int = 0) -> NDArray[np.uint32]:
    return np.flatnonzero(np.random.default_rng(seed).random(length) < share).astype(np.uint32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "start"), [(1, 0), (7, 0), (7, 5), (64, 1 << 20), (300, 123), (1000, 999)])
def test_values_by_plain_python(loops: Backend, kind: str, width: int, start: int) -> None:
    positions, factor = some_positions(300, 0.4), np.float32(3.9215686)
    lines = lines_of(kind, (start + 300) // width + 1, width)
    codes = np.random.default_rng(1).integers(-127, 128, len(positions)).astype(np.int8)
    found = loops.scaled_values(codes, positions, start, lines, factor)
    kept = loops.in_kept_rows(positions, start, lines) if kind != "tensor" else None
    for i, position in enumerate(positions.tolist()):
        row, column = divmod(start + position, width)
        scale = np.float32(lines.scale)
        if kind == "rows":
            scale = lines.rows[row] * scale
        elif kind == "outer":
            scale = (lines.rows[row] * lines.columns[column]) * scale
        assert found[i].tobytes() == (np.float32(codes[i]) * (scale * factor)).tobytes()
        assert loops.scales_at(positions[i : i + 1], start, lines)[0] == scale
        assert kept is None or kept[i] == (lines.rows[row] != 0)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 200),
    st.integers(0, 1 << 34),
    st.integers(0, 500),
    st.floats(0, 1),
    st.floats(width=32),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_backends_agree(kind: str, width: int, start: int, length: int, share: float, factor: float, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    # The rows before the chunk are those of the chunk again and again, so that a start far in a tensor needs no table as long.
    start %= 50 * width
    lines = lines_of(kind, (start + length) // width + 1, width, seed, dropped=data.draw(st.sampled_from([0.0, 0.5, 1.0])))
    positions = some_positions(length, share, seed)
    codes = np.random.default_rng(seed).integers(-128, 128, len(positions)).astype(np.int8)
    one, other = (load(name) for name in BACKENDS)
    values = [loops.scaled_values(codes, positions, start, lines, np.float32(factor)) for loops in (one, other)]
    numbers = ~np.isnan(values[0])
    assert np.array_equal(numbers, ~np.isnan(values[1]))
    assert values[0][numbers].tobytes() == values[1][numbers].tobytes()
    assert one.scales_at(positions, start, lines).tobytes() == other.scales_at(positions, start, lines).tobytes()
    if kind != "tensor":
        assert one.in_kept_rows(positions, start, lines).tolist() == other.in_kept_rows(positions, start, lines).tolist()


def test_room_for_values_is_used(loops: Backend) -> None:
    positions, room = some_positions(300, 0.4), np.empty(400, np.float32)
    codes = np.ones(len(positions), np.int8)
    for kind in KINDS:
        assert loops.scaled_values(codes, positions, 0, lines_of(kind, 301, 1), np.float32(1), room).base is room


WILD = st.floats(width=32, allow_nan=False)
SCALE = st.one_of(st.just(0.0), st.floats(2.0**-40, 2.0**40, width=32))


@given(st.lists(st.tuples(WILD, SCALE), max_size=100), st.floats(2.0**-10, 2.0**10, width=32), st.sampled_from([2, 4, 8, 128]))
@settings(max_examples=80, deadline=None)
def test_backends_make_the_same_codes(pairs: list[tuple[float, float]], threshold: float, top: int) -> None:
    values, scales = (np.array([pair[side] for pair in pairs], np.float32) for side in range(2))
    for make in ("trits_of", "level_codes"):
        one, other = (getattr(load(name), make)(values, scales, np.float32(threshold)) for name in BACKENDS)
        assert one.dtype == np.int8 and one.tobytes() == other.tobytes()
        assert np.abs(one.astype(int)).max(initial=0) <= (1 if make == "trits_of" else 127)
    one, other = (load(name).rounded_codes(values, scales, top) for name in BACKENDS)
    assert one.tobytes() == other.tobytes() and -top <= one.min(initial=0) <= one.max(initial=0) < top


def test_trits_of_what_is_large(loops: Backend) -> None:
    values = np.array([0.7, -0.7, 0.69, -0.69, 0.0, -0.0, 1e30], np.float32)
    scales = np.full(7, 2, np.float32)
    assert loops.trits_of(values, scales, np.float32(0.35)).tolist() == [1, -1, 0, 0, 0, 0, 1]


def test_levels_have_a_dead_zone(loops: Backend) -> None:
    """The first step is reached at .6 of it, each other 1 later; there are no more than 127."""
    values = np.array([0.59, 0.61, -0.61, 1.59, 1.61, -126.61, 1e30, -1e30, 0.0], np.float32)
    half = loops.level_codes(values * np.float32(0.5), np.full(9, 2, np.float32), np.float32(0.25))
    assert half.tolist() == loops.level_codes(values, np.ones(9, np.float32), np.float32(1)).tolist()
    assert half.tolist() == [0, 1, -1, 1, 2, -127, 127, -127, 0]


def test_a_scale_of_zero_makes_no_codes(loops: Backend) -> None:
    zero, none = np.zeros(1, np.float32), np.zeros(1, np.float32)
    assert loops.trits_of(none, zero, np.float32(1)).tolist() == [0]
    assert loops.level_codes(none, zero, np.float32(1)).tolist() == [0]
    assert loops.rounded_codes(none, zero, 8).tolist() == [0]
