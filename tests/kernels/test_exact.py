"""The loops of the exact codec: both backends give the same bits, and decoding gives back what was encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.backends import load

from deltapack.dtypes import BY_NAME
from deltapack.kernels import Backend
from deltapack.kernels.exact_numbers import Numbers, numbers_of, symbol_table
from deltapack.kernels.layout import RANS_LOW, TILE

TYPES = ["f64", "f32", "bf16", "f16", "f8_e4m3fn", "f8_e5m2", "i64", "i32", "i16", "u8"]
LENGTHS = [1, 2, 127, 128, 130, 5000, TILE + 1]


@pytest.fixture
def oracle() -> Backend:
    return load("reference")


def pair(name: str, length: int) -> tuple[NDArray[Any], NDArray[Any], Numbers]:
    """Any bits; a third of the numbers differs by 3, a fifth not at all."""
    numbers, rng = numbers_of(BY_NAME[name]), np.random.default_rng(length)
    storage = np.dtype(numbers.storage)
    base = rng.integers(0, 1 << 64, length, np.uint64).astype(storage)
    tuned = rng.integers(0, 1 << 64, length, np.uint64).astype(storage)
    tuned[::3] = base[::3] + storage.type(3)
    tuned[::5] = base[::5]
    return base, tuned, numbers


def fars(numbers: Numbers) -> list[int]:
    return [-1, max(0, numbers.mask - 127), numbers.mask] if numbers.far else [-1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TYPES)
def test_symbols_and_raw_bits_give_the_numbers_back(oracle: Backend, loops: Backend, name: str, length: int) -> None:
    base, tuned, numbers = pair(name, length)
    _check_raw_bits(oracle, loops, base, tuned, numbers)


@pytest.mark.parametrize("share", [0.01, 0.2])
@pytest.mark.parametrize("name", TYPES)
def test_few_raw_bits_give_the_numbers_back(oracle: Backend, loops: Backend, name: str, share: float) -> None:
    base, tuned, numbers = pair(name, 5003)
    is_kept = np.random.default_rng(4).random(5003) >= share
    tuned[is_kept] = base[is_kept]
    _check_raw_bits(oracle, loops, base, tuned, numbers)


def _check_raw_bits(oracle: Backend, loops: Backend, base: NDArray[Any], tuned: NDArray[Any], numbers: Numbers) -> None:
    for far in fars(numbers):
        symbols = loops.symbols_of(base, tuned, numbers, far)
        assert (symbols == oracle.symbols_of(base, tuned, numbers, far)).all()
        assert symbol_table(numbers, far).legal[symbols].all()
        raw, bits = loops.raw_bits_of(base, tuned, symbols, numbers, far)
        expected = oracle.raw_bits_of(base, tuned, symbols, numbers, far)
        assert (raw == expected[0]).all() and (bits == expected[1]).all()
        sizes = -(-bits // 8)
        padded = np.concatenate([raw, np.full(8 * min(len(base), TILE) + 16, 0xFF, np.uint8)])
        found, used = loops.numbers_from(base, symbols, padded, np.cumsum(sizes) - sizes, numbers, far)
        assert (found == tuned).all() and (used == bits).all()


@pytest.mark.parametrize("name", TYPES)
def test_the_largest_differences_have_the_last_symbol(loops: Backend, name: str) -> None:
    numbers = numbers_of(BY_NAME[name])
    kind = np.dtype(numbers.storage).type
    base = np.array([0], kind)
    far_off = kind((1 << numbers.width) - 1 if numbers.signed else 1 << numbers.width - 1)  # ordinal -2^(width - 1)
    assert loops.symbols_of(base, np.array([far_off]), numbers, -1)[0] == numbers.top
    assert numbers.top < (128 if numbers.far else 256)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TYPES)
def test_models_are_the_same(oracle: Backend, loops: Backend, name: str, length: int) -> None:
    base, tuned, numbers = pair(name, length)
    classes = np.random.default_rng(1).integers(0, 2, -(-length // 128)).astype(np.uint8)
    symbols = loops.symbols_of(base, tuned, numbers, -1)
    assert (loops.block_sums(symbols) == oracle.block_sums(symbols)).all()
    assert loops.flips_of(base, tuned, numbers) == oracle.flips_of(base, tuned, numbers)
    first, counts = loops.count_symbols(base, classes, symbols, numbers, 2)
    expected_first, expected_counts = oracle.count_symbols(base, classes, symbols, numbers, 2)
    assert first == expected_first and counts.shape == expected_counts.shape and (counts == expected_counts).all()
    assert counts.sum() == length and counts[:, 0].any() and counts[:, -1].any() and counts[:, :, -1].any()
    for own in counts:
        for most in (1, 2, 16):
            (starts, cost), expected = loops.context_ranges(own, most), oracle.context_ranges(own, most)
            assert starts.tolist() == expected[0].tolist() and cost == expected[1]
            assert starts[0] == 0 and len(starts) <= most
    maps = np.random.default_rng(2).integers(0, 16, (2, 256)).astype(np.uint8)
    assert (loops.contexts_of(base, classes, maps, numbers) == oracle.contexts_of(base, classes, maps, numbers)).all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_staircases_are_the_same(oracle: Backend, loops: Backend, name: str, length: int) -> None:
    base, _, numbers = pair(name, length)
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 2, -(-length // 128)).astype(np.uint8)
    stairs = rng.integers(0, 1 << numbers.width, (2, 64), np.uint64)
    tuned = loops.predicted_of(base, classes, stairs, numbers)
    assert (tuned == oracle.predicted_of(base, classes, stairs, numbers)).all()
    tuned[::7] += tuned.dtype.type(1)
    for wanted in (0, 1):
        candidates, *found = loops.stairs_of(base, tuned, classes, wanted, 2, numbers)
        expected = oracle.stairs_of(base, tuned, classes, wanted, 2, numbers)
        assert candidates.tolist() == expected[0].tolist() and tuple(found) == expected[1:]
        if length == TILE + 1:
            assert (candidates == stairs[wanted]).all()


@pytest.mark.parametrize("precision", [10, 11, 12])
def test_frequencies_sum_up_and_forget_nothing(oracle: Backend, loops: Backend, precision: int) -> None:
    rng = np.random.default_rng(precision)
    for kind in range(60):
        counts = (rng.random(256) ** rng.integers(1, 60) * 10 ** rng.integers(0, 7)).astype(np.int64)
        counts[rng.random(256) < kind / 60] = 0
        counts[kind] += 1
        found = loops.frequencies_of(counts, precision)
        assert (found == oracle.frequencies_of(counts, precision)).all()
        assert found.sum() == 1 << precision and ((found > 0) == (counts > 0)).all()


@pytest.mark.parametrize("lanes", [4, 8, 32])
@pytest.mark.parametrize("precision", [10, 12])
def test_range_coding_gives_the_symbols_back(oracle: Backend, loops: Backend, precision: int, lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    for length in (1, 3, lanes, lanes + 1, 5000, TILE, TILE + 2 * lanes - 1):
        contexts = rng.integers(0, 3, length).astype(np.uint8)
        symbols = np.where(contexts == 0, 7, (rng.standard_normal(length) * contexts * 9).astype(np.int64) % 256).astype(np.uint8)
        counts = np.bincount(contexts.astype(np.int64) << 8 | symbols, minlength=768).reshape(3, 256)
        frequencies = np.array([oracle.frequencies_of(row if row.any() else np.eye(256, dtype=np.int64)[0], precision) for row in counts])
        table = loops.decoding_table(frequencies, precision)
        assert (table == oracle.decoding_table(frequencies, precision)).all()
        found = loops.rans_encode(contexts, symbols, frequencies, precision, lanes)
        states, words, sizes = found
        expected = oracle.rans_encode(contexts, symbols, frequencies, precision, lanes)
        assert [part.dtype for part in found] == [part.dtype for part in expected]
        assert [part.tolist() for part in found] == [part.tolist() for part in expected]
        assert states.min() >= RANS_LOW and states.max() < RANS_LOW << 16
        padded = np.concatenate([words, np.full(TILE + 1, 0xFFFF, np.uint16)])
        decoded, whole = loops.rans_decode(contexts, table, precision, states, padded, sizes)
        assert whole and (decoded == symbols).all()
        sizes[-1] += 1
        assert not loops.rans_decode(contexts, table, precision, states, padded, sizes)[1]
        sizes[-1] -= 1
        states[0, 0] ^= 1
        assert not loops.rans_decode(contexts, table, precision, states, padded, sizes)[1]


@pytest.mark.parametrize("length", [1, 2, 5000])
def test_one_lane_gives_the_symbols_back(oracle: Backend, loops: Backend, length: int) -> None:
    contexts, symbols, frequencies = _rare(length)
    found, expected = (own.rans_encode(contexts, symbols, frequencies, 12, 1) for own in (loops, oracle))
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]
    padded = np.concatenate([found[1], np.full(TILE + 1, 0xFFFF, np.uint16)])
    decoded, whole = loops.rans_decode(contexts, loops.decoding_table(frequencies, 12), 12, found[0], padded, found[2])
    assert whole and (decoded == symbols).all()


@pytest.mark.parametrize("length", [3 * TILE + 1, 4 * TILE, 5 * TILE - 9])
def test_tiles_of_one_lane_are_coded_together_as_alone(length: int) -> None:
    loops = load("cpu")
    contexts, symbols, frequencies = _rare(length)
    states, words, sizes = loops.rans_encode(contexts, symbols, frequencies, 12, 1)
    for tile, start in enumerate(range(0, length, TILE)):
        inside, place = slice(start, start + TILE), int(sizes[:tile].sum())
        alone = loops.rans_encode(contexts[inside], symbols[inside], frequencies, 12, 1)
        assert alone[0] == states[tile] and alone[2] == sizes[tile] and alone[1].tolist() == words[place : place + sizes[tile]].tolist()
    table = loops.decoding_table(frequencies, 12)
    padded = np.concatenate([words, np.full(TILE + 1, 0xFFFF, np.uint16)])
    decoded, whole = loops.rans_decode(contexts, table, 12, states, padded, sizes)
    assert whole and (decoded == symbols).all()
    for tile in range(len(sizes)):
        states[tile] ^= 1
        assert not loops.rans_decode(contexts, table, 12, states, padded, sizes)[1]
        states[tile] ^= 1
        sizes[tile] += 1
        assert not loops.rans_decode(contexts, table, 12, states, padded, sizes)[1]
        sizes[tile] -= 1


def _rare(length: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Contexts and symbols of which few are not 0, and their frequencies, of a precision of 12."""
    rng = np.random.default_rng(length)
    contexts = rng.integers(0, 3, length).astype(np.uint8)
    symbols = np.where(rng.random(length) < 0.02, rng.integers(0, 9, length), 0).astype(np.uint8)
    frequencies = np.zeros((3, 256), np.int64)
    frequencies[:, :9] = [4000, 16, 16, 16, 16, 16, 8, 4, 4]
    return contexts, symbols, frequencies
