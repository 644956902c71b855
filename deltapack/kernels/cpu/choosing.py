"""Which elements are kept, compiled; `deltapack.kernels.reference.choosing` says what each function does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import as_u32, compiled
from deltapack.kernels.cpu.positions import _philox
from deltapack.kernels.layout import TILE, Counts, Values
from deltapack.kernels.reference.choosing import HIGH, LOW, MAGNITUDE

__all__ = ["element_samples", "histogram_high", "histogram_low", "places_below", "places_between", "row_ranks"]

_MAGNITUDE = np.uint32(MAGNITUDE)


def histogram_high(values: Values) -> Counts:
    """See the reference."""
    counts = np.zeros((2, HIGH), np.uint32)
    zeros = int(_histogram_high(np.ascontiguousarray(values), counts))
    total: Counts = counts[0].astype(np.int64) + counts[1]
    total[0] -= zeros
    return total


@compiled
def _histogram_high(values: Values, counts: NDArray[np.uint32]) -> np.uint32:
    """Count all values and return how many are zero."""
    # Two tables in turns, as equal neighbours would wait for each other's count.
    zeros = np.uint32(0)
    for i in range(np.uint64(len(values))):
        bits = as_u32(values[i]) & _MAGNITUDE
        counts[i & np.uint64(1), np.uint64(bits >> np.uint32(16))] += np.uint32(1)
        zeros += np.uint32(bits == np.uint32(0))
    return zeros


def histogram_low(values: Values, high: int) -> Counts:
    """See the reference."""
    counts = np.zeros(LOW, np.int64)
    _histogram_low(np.ascontiguousarray(values), np.uint32(high), counts)
    return counts


@compiled
def _histogram_low(values: Values, high: np.uint32, counts: Counts) -> None:
    for i in range(np.uint64(len(values))):
        bits = as_u32(values[i]) & _MAGNITUDE
        if bits >> np.uint32(16) == high:
            counts[np.uint64(bits & np.uint32(LOW - 1))] += 1


def places_between(values: Values, least: int, least_ties: int, most: int, most_ties: int) -> NDArray[np.uint32]:
    """See the reference."""
    places = np.empty(len(values) + 1, np.uint32)
    cuts = np.uint32(least), np.uint64(least_ties), np.uint32(most), np.uint64(most_ties)
    return places[: int(_places_between(np.ascontiguousarray(values), *cuts, places))].copy()


@compiled
def _places_between(
    values: Values, least: np.uint32, least_ties: np.uint64, most: np.uint32, most_ties: np.uint64, places: NDArray[np.uint32]
) -> np.uint64:
    found, zero, one = np.uint64(0), np.uint64(0), np.uint64(1)
    for i in range(np.uint64(len(values))):
        # In integers, without branches; the next place overwrites one that is not kept.
        bits = as_u32(values[i]) & _MAGNITUDE
        first_equal = np.uint64(bits == least) & np.uint64(least_ties > zero)
        last_equal = np.uint64(bits == most) & np.uint64(most_ties > zero)
        least_ties -= first_equal
        most_ties -= last_equal
        places[found] = np.uint32(i)
        found += (np.uint64(bits > least) | first_equal) & ((np.uint64(bits > most) | last_equal) ^ one)
    return found


def row_ranks(values: Values) -> NDArray[np.uint32]:
    """See the reference."""
    # Magnitude and place in one integer: no two are equal, so any order of sorting gives the same, and the fastest will do.
    keys = np.empty(values.shape, np.uint64)
    _fill_keys(np.ascontiguousarray(values), keys)
    keys.sort(axis=1)
    ranks = np.empty(values.shape, np.uint32)
    _place_ranks(keys, ranks)
    return ranks


@compiled
def _fill_keys(values: Values, keys: NDArray[np.uint64]) -> None:
    for row in range(len(keys)):
        for i in range(np.uint64(keys.shape[1])):
            keys[row, i] = np.uint64(as_u32(values[row, i]) & _MAGNITUDE) << np.uint64(32) | i


@compiled
def _place_ranks(keys: NDArray[np.uint64], ranks: NDArray[np.uint32]) -> None:
    for row in range(len(keys)):
        for rank in range(np.uint64(keys.shape[1])):
            ranks[row, keys[row, rank] & np.uint64(0xFFFFFFFF)] = np.uint32(rank)


def places_below(samples: NDArray[np.uint32], ranks: NDArray[np.uint32], limits: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """See the reference."""
    places = np.empty(len(samples) + 1, np.uint32)
    return places[: int(_below(samples, np.ascontiguousarray(ranks), limits, places))].copy()


@compiled
def _below(samples: NDArray[np.uint32], ranks: NDArray[np.uint32], limits: NDArray[np.uint64], places: NDArray[np.uint32]) -> np.uint64:
    found = np.uint64(0)
    for i in range(np.uint64(len(samples))):
        places[found] = np.uint32(i)
        found += np.uint64(np.uint64(samples[i]) < limits[np.uint64(ranks[i])])
    return found


def element_samples(key: int, first_tile: int, length: int) -> NDArray[np.uint32]:
    """See the reference."""
    samples = np.empty(-(-length // 4) * 4, np.uint32)
    _fill(np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), np.uint32(first_tile), samples)
    return samples[:length]


@compiled
def _fill(k0: np.uint32, k1: np.uint32, first_tile: np.uint32, samples: NDArray[np.uint32]) -> None:
    for tile in range(-(-len(samples) // TILE)):
        _philox(k0, k1, np.uint32(first_tile + np.uint32(tile)), np.uint32(0), samples[tile * TILE : (tile + 1) * TILE])
