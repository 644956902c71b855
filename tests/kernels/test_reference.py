"""Every backend against plain Python, one element at a time, and against each other."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vectors import scalar

from deltapack.dtypes import BY_NAME
from deltapack.errors import FormatError
from deltapack.format.table import tile_lengths
from deltapack.kernels import Backend, active, reference
from deltapack.kernels.reference import TILE

FLOATS = ["f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"]
KEYS = [0, 1, 0x0123456789ABCDEF, 2**64 - 1, 1 << 32]


BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def loops(request: pytest.FixtureRequest) -> Backend:
    """One backend after the other, as far as this machine has them."""
    return load(request.param)


def load(name: str) -> Backend:
    if name == "cpu":
        pytest.importorskip("numba")
    module: Any = importlib.import_module(f"deltapack.kernels.{name}")
    found: Backend = module
    return found


def unsigned(elements: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(elements).view(f"<u{elements.dtype.itemsize}")


def test_philox_of_zeros() -> None:
    """The published value of Philox4x32-10."""
    found = reference.philox(0, np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    assert [f"{word:08x}" for word in found[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("key", KEYS)
def test_philox_by_plain_integers(key: int) -> None:
    tiles, blocks = np.array([[0], [7], [2**32 - 1]], np.uint64), np.array([[0, 1, 12345, 2**32 - 1]], np.uint64)
    found = reference.philox(key, tiles, blocks)
    assert found.shape == (3, 4, 4)
    for row, tile in enumerate(tiles[:, 0].tolist()):
        for column, block in enumerate(blocks[0].tolist()):
            assert found[row, column].tolist() == scalar.philox(block, tile, key)


@pytest.mark.parametrize("keep", [1, 2, 1 << 16, (1 << 32) // 10, 1 << 31, 2**32 - 1])
def test_thresholds(keep: int) -> None:
    survive, expected = 2**32, []
    for _ in range(255):
        survive = survive * (2**32 - keep) // 2**32
        expected.append(2**32 - survive)
    assert reference.gap_thresholds(keep).tolist() == expected


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("keep", "length"),
    [
        (1, TILE),
        (1 << 16, TILE),
        ((1 << 32) // 1000, TILE),
        ((1 << 32) // 100, 30_000),
        ((1 << 32) // 10, 5000),
        (1 << 31, 1000),
        (2**32 - 1, 300),
        (1 << 31, 1),
        ((1 << 32) // 10, 64),
        ((1 << 32) // 10, 255),
        ((1 << 32) // 200, 256),
    ],
)
def test_sampled_positions_by_plain_walk(loops: Backend, key: int, keep: int, length: int) -> None:
    for tile in (0, 41):
        positions, counts = loops.sample_positions(key, keep, tile, np.array([length], np.int64))
        assert positions.dtype == np.uint32
        assert positions.tolist() == scalar.seeded_positions(keep, key, tile, length)
        assert counts.tolist() == [len(positions)]


@pytest.mark.parametrize("keep", [1, (1 << 32) // 1000, (1 << 32) // 10, 1 << 31, 2**32 - 1])
def test_tiles_do_not_depend_on_their_chunk(loops: Backend, keep: int) -> None:
    lengths = np.array(tile_lengths(15 * TILE + 77), np.int64)
    positions, counts = loops.sample_positions(5, keep, 32, lengths)
    single = [loops.sample_positions(5, keep, 32 + tile, lengths[tile : tile + 1])[0] for tile in range(16)]
    assert counts.tolist() == [len(part) for part in single]
    assert np.array_equal(positions, np.concatenate([part + np.uint32(tile * TILE) for tile, part in enumerate(single)]))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 65_535])
def test_a_shorter_tile_keeps_the_start_of_the_full_one(loops: Backend, length: int) -> None:
    full, _ = loops.sample_positions(9, 1 << 30, 3, np.array([TILE], np.int64))
    short, _ = loops.sample_positions(9, 1 << 30, 3, np.array([length], np.int64))
    assert np.array_equal(short, full[full < length])


def test_no_tiles(loops: Backend) -> None:
    positions, counts = loops.sample_positions(9, 1 << 30, 0, np.zeros(0, np.int64))
    assert (positions.dtype, len(positions), len(counts)) == (np.uint32, 0, 0)


@given(st.sampled_from([1, (1 << 32) // 300, 1 << 30, 2**32 - 1]), st.integers(0, 2**64 - 1))
@settings(max_examples=15, deadline=None)
def test_too_few_samples_are_drawn_again(keep: int, key: int) -> None:
    """The estimate of how many samples a tile needs may fail; the walk then goes on, to the same end."""
    few, few_kept = reference._walk(key, keep, 1, 2, 1, TILE)
    many, many_kept = reference._walk(key, keep, 1, 2, 4096, TILE)
    assert few[:, -1].min() >= TILE
    width = min(few.shape[1], many.shape[1])
    assert np.array_equal(few[:, :width], many[:, :width])
    assert np.array_equal(few_kept[:, :width], many_kept[:, :width])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.data())
def test_positions_from_gaps(backend: str, kept: list[int], data: st.DataObject) -> None:
    lengths = [TILE] * (len(kept) - 1) + [data.draw(st.integers(1, 40))]
    gaps, expected, leaves = [], [], False
    for tile, count in enumerate(kept):
        cursor = 0
        for _ in range(count):
            gap = data.draw(st.integers(0, 12) | st.just(TILE - 8))
            gaps.append(gap)
            expected.append(tile * TILE + cursor + gap)
            leaves |= cursor + gap >= lengths[tile]
            cursor += gap + 1
    arrays = np.array(gaps, np.int64), np.array(kept, np.int64), np.array(lengths, np.int64)
    if leaves:
        with pytest.raises(FormatError) as caught:
            load(backend).positions_from_gaps(*arrays)
        assert caught.value.rule == "R9"
    else:
        assert load(backend).positions_from_gaps(*arrays).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 600), max_size=8))
def test_group_counts(kept: list[int]) -> None:
    expected = [min(128, count - start) for count in kept for start in range(0, count, 128)]
    assert reference.group_counts(np.array(kept, np.int64)).tolist() == expected


special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 1e-38, 2.0**24])
numbers = special | st.floats(width=32, allow_nan=False, allow_infinity=False)
sparse = st.dictionaries(st.integers(0, 11), numbers, max_size=12)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(st.lists(sparse, min_size=1, max_size=4))
def test_sum_of_terms_by_plain_scalars(backend: str, terms: list[dict[int, float]]) -> None:
    expected: dict[int, np.float32] = {}
    with np.errstate(all="ignore"):
        for term in terms:
            for position, value in term.items():
                expected[position] = expected.get(position, np.float32(0)) + np.float32(value)
    arrays = [
        (np.array(sorted(term), np.uint32), np.array([term[at] for at in sorted(term)], np.float32)) for term in terms
    ]
    before = [(positions.tobytes(), values.tobytes()) for positions, values in arrays]
    positions, values = load(backend).sum_terms(12, arrays)
    assert positions.dtype == np.uint32
    assert positions.tolist() == sorted(expected)
    assert values.tobytes() == np.array([expected[at] for at in sorted(expected)], np.float32).tobytes()
    assert before == [(positions.tobytes(), values.tobytes()) for positions, values in arrays]


def test_the_sum_starts_from_positive_zero(loops: Backend) -> None:
    one = (np.array([3], np.uint32), np.array([-0.0], np.float32))
    for terms in ([one], [one, one]):
        assert not np.signbit(loops.sum_terms(5, terms)[1][0])


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_add_sparse_by_plain_scalars(loops: Backend, source: str, target: str) -> None:
    size, rng = BY_NAME[source].itemsize, np.random.default_rng(3)
    bits = np.concatenate([rng.integers(0, 256, 300 * size, np.uint8).view(f"<u{size}"), np.zeros(100, f"<u{size}")])
    bits[-50:] = 1 << 8 * size - 1  # -0.0
    positions = np.flatnonzero(rng.random(400) < 0.7).astype(np.uint32)
    total = np.where(rng.random(len(positions)) < 0.2, 0, rng.normal(0, 1, len(positions))).astype(np.float32)
    total[::17], total[1::17], total[2::17] = 1e-40, 3e38, np.inf
    base = bits.view(BY_NAME[source].storage)
    found = loops.add_sparse(base, BY_NAME[source], BY_NAME[target], positions, total)
    values = dict(zip(positions.tolist(), total.tolist(), strict=True))
    expected = [
        scalar.patch(source, element, target, [values[at]] if at in values else []) for at, element in enumerate(bits.tolist())
    ]
    assert found.dtype == np.dtype(BY_NAME[target].storage)
    assert unsigned(found).tolist() == expected
    assert unsigned(base).tobytes() == bits.tobytes()


def test_adding_nothing_gives_the_base_itself(loops: Backend) -> None:
    base = np.array([1, 0x7F81], np.uint16)
    none = np.zeros(0, np.uint32), np.zeros(0, np.float32)
    assert loops.add_sparse(base, BY_NAME["bf16"], BY_NAME["bf16"], *none) is base


def test_negative_zero_plus_zero_is_positive_zero(loops: Backend) -> None:
    base = np.array([-0.0, -0.0], np.float32)
    found = loops.add_sparse(base, BY_NAME["f32"], BY_NAME["f32"], np.array([1], np.uint32), np.zeros(1, np.float32))
    assert np.signbit(found.astype(np.float32)).tolist() == [True, False]


def test_signalling_nan_stays_where_nothing_is_kept(loops: Backend) -> None:
    base = np.array([0x7F800001, 0x7F800001], np.uint32).view(np.float32)
    found = loops.add_sparse(base, BY_NAME["f32"], BY_NAME["f32"], np.array([1], np.uint32), np.ones(1, np.float32))
    assert unsigned(found).tolist() == [0x7F800001, 0x7FC00000]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_every_byte_of_codes(loops: Backend, bits: int) -> None:
    raw = np.arange(256, dtype=np.uint8)
    found = loops.unpack_codes(raw, bits, 256 * 8 // bits)
    assert found.dtype == np.int8
    expected = []
    for byte in range(256):
        for slot in range(8 // bits):
            field = byte >> slot * bits & (1 << bits) - 1
            expected.append(1 - 2 * field if bits == 1 else field - (1 << bits) * (field >> bits - 1))
    assert found.tolist() == expected


def test_scaled_values_round_once_for_the_group_and_once_for_the_value(loops: Backend) -> None:
    rng = np.random.default_rng(1)
    codes, scales = rng.integers(-128, 128, 129).astype(np.int8), np.array([0x3EAB, 0xBE99], np.uint16)
    factor = np.float32(1 / 0.3)
    found = loops.scale_codes(codes, scales, np.array([129], np.int64), factor)
    steps = [np.uint32(int(scale) << 16).view(np.float32) * factor for scale in scales]
    assert found.tobytes() == np.array([np.float32(code) * steps[i // 128] for i, code in enumerate(codes)]).tobytes()


def search_arguments(top: int, mantissa_bits: int) -> tuple[Any, ...]:
    """Random groups, a dead one and one of a single value."""
    rng = np.random.default_rng(top)
    integers = np.clip(np.rint(rng.laplace(0, 300, (200, 128))), -2047, 2047).astype(np.int32)
    integers[0], integers[1] = 0, np.arange(128) == 5
    integers[1] *= -2047
    largest = np.exp2(rng.uniform(-90, 90, 200)).astype(np.float32)
    inverse = np.float32(2047) / largest
    inverse[0] = 0
    drop = np.uint32((1 << 23 - mantissa_bits) - 1)
    start = ((largest / np.float32(top - 0.5)).view(np.uint32) + drop) & ~drop
    start[0] = 0
    return integers, rng.random(200) < 0.5, start.astype(np.uint32), inverse, top, mantissa_bits, 16


@pytest.mark.parametrize(("top", "mantissa_bits"), [(8, 4), (4, 3), (2, 3)])
def test_scale_search_by_plain_integers(loops: Backend, top: int, mantissa_bits: int) -> None:
    arguments = search_arguments(top, mantissa_bits)
    integers, negative, start, inverse, *_ = arguments
    found = loops.search_steps(*arguments)
    assert found.dtype == np.uint32
    for group in (0, 1, 2, 77, 199):
        best = (1 << 62, 0)
        for candidate in range(16):
            offset = candidate << 23 - mantissa_bits
            bits = int(start[group]) - offset if start[group] > offset else int(start[group])
            step = max(np.rint(np.uint32(bits).view(np.float32) * inverse[group]), np.float32(1))
            reciprocal, error = np.float32(1) / step, 0
            for integer in integers[group].tolist():
                code = int(np.rint(np.float32(integer) * reciprocal)) * (-1 if negative[group] else 1)
                code = min(max(code, -top), top - 1) * (-1 if negative[group] else 1)
                error += (integer - code * int(step)) ** 2
            best = min(best, (error, -candidate), key=lambda pair: pair[0])
            if best == (error, -candidate):
                chosen = bits
        assert found[group] == chosen


@pytest.mark.parametrize("keep", [1, (1 << 32) // 1000, (1 << 32) // 10, 1 << 31, 2**32 - 1])
def test_backends_give_the_same_bits(keep: int) -> None:
    """On whole chunks, where the plain walk would take too long."""
    fast, lengths = load("cpu"), np.array(tile_lengths(15 * TILE + 77), np.int64)
    for first in (0, 16, 2**32 - 16):
        one, other = (loops.sample_positions(2**63 + 5, keep, first, lengths) for loops in (reference, fast))
        assert one[0].tobytes() == other[0].tobytes()
        assert one[1].tobytes() == other[1].tobytes()
    for top, mantissa_bits in ((8, 4), (4, 3), (2, 3)):
        arguments = search_arguments(top, mantissa_bits)
        assert reference.search_steps(*arguments).tobytes() == fast.search_steps(*arguments).tobytes()
    rng = np.random.default_rng(keep % 97)
    bits = rng.integers(0, 1 << 32, 100_000, np.uint32)
    positions = np.flatnonzero(rng.random(100_000) < 0.5).astype(np.uint32)
    total = rng.integers(0, 1 << 32, len(positions), np.uint32).view(np.float32)
    for name, base in (("f32", bits.view(np.float32)), ("bf16", bits.astype(np.uint16))):
        one, other = (loops.add_sparse(base, BY_NAME[name], BY_NAME[name], positions, total) for loops in (reference, fast))
        assert unsigned(one).tobytes() == unsigned(other).tobytes()


def test_without_numba_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    active.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "deltapack.kernels.cpu", raising=False)
    monkeypatch.delattr("deltapack.kernels.cpu", raising=False)
    try:
        with pytest.warns(RuntimeWarning, match="numba cannot be imported"):
            assert active() is reference
    finally:
        active.cache_clear()


def test_with_numba_the_compiled_loops_serve() -> None:
    assert active() is load("cpu")
