"""The seeded mask is a Bernoulli mask: density, gaps, places and independence, at fixed seeds."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, TILE, TILES_PER_CHUNK
from deltapack.kernels import active
from deltapack.sparsify.dare import ALL_KEPT, keep_of_drop_rate, mask_key, rescale_factor, select

DENSITIES = [0.5, 0.1, 0.01, 0.001]
SIGMAS = 4.0
P_VALUE = 1e-4
KEY = mask_key(0, "identity", "model.layers.0.weight")


def tiles_for(density: float) -> int:
    return {0.5: 32, 0.1: 64, 0.01: 256, 0.001: 1024}[density]


def keep_of(density: float) -> int:
    return round(density * ALL_KEPT)


@cache
def mask(density: float, key: int = KEY, first: int = 0) -> NDArray[np.int64]:
    """Kept positions over many tiles, counted from the start of the tensor."""
    tiles = tiles_for(density)
    lengths = np.full(tiles, TILE, np.int64)
    positions, _ = active().sample_positions(key, keep_of(density), first, lengths)
    return positions.astype(np.int64)


def z_score(found: int, trials: int, probability: float) -> float:
    return (found - trials * probability) / math.sqrt(trials * probability * (1 - probability))


@pytest.mark.parametrize("density", DENSITIES)
def test_density(density: float) -> None:
    assert abs(z_score(len(mask(density)), tiles_for(density) * TILE, density)) < SIGMAS


@pytest.mark.parametrize("density", DENSITIES)
def test_kept_per_tile_is_binomial(density: float) -> None:
    counts = np.bincount(mask(density) // TILE, minlength=tiles_for(density))
    variance = TILE * density * (1 - density)
    statistic = float(np.square(counts - TILE * density).sum() / variance)
    p_value = stats.chi2.cdf(statistic, len(counts))
    assert P_VALUE < p_value < 1 - P_VALUE


def gaps_from_first_half(density: float) -> NDArray[np.int64]:
    """Gaps that begin in the first half of a tile, those that reach its end cut to half a tile.

    All gaps would be a biased sample: long ones are more often cut off by the end of the tile.
    """
    found = []
    for tile in range(tiles_for(density)):
        all_kept = mask(density)
        low, high = np.searchsorted(all_kept, [tile * TILE, (tile + 1) * TILE])
        kept = all_kept[low:high] - tile * TILE
        starts = np.concatenate([[0], kept + 1])
        gaps = np.concatenate([kept, [2 * TILE]]) - starts
        found.append(np.minimum(gaps[starts < TILE // 2], TILE // 2))
    return np.concatenate(found)


@pytest.mark.parametrize("density", DENSITIES)
def test_gaps_are_geometric(density: float) -> None:
    gaps = gaps_from_first_half(density)
    quantiles = np.floor(np.log1p(-np.arange(1, 40) / 40) / math.log1p(-density)).astype(np.int64)
    # The generator restarts after 255 skipped elements, so its seams get bins of their own.
    edges = np.unique(np.concatenate([quantiles, [254, 255, 256, 509, 510, 511]]))
    edges = edges[edges > 0]
    expected = -np.diff(np.concatenate([[1.0], (1 - density) ** edges, [0.0]])) * len(gaps)
    observed = np.bincount(np.searchsorted(edges, gaps, side="right"), minlength=len(expected))
    rare = expected < 5
    keep_bins = np.flatnonzero(~rare)
    merged = np.append(expected[keep_bins], expected[rare].sum()), np.append(observed[keep_bins], observed[rare].sum())
    used = merged[0] > 1
    statistic = float((np.square(merged[1] - merged[0])[used] / merged[0][used]).sum())
    assert stats.chi2.sf(statistic, int(used.sum()) - 1) > P_VALUE


@pytest.mark.parametrize("density", DENSITIES)
def test_neighbouring_gaps_are_independent(density: float) -> None:
    gaps = gaps_from_first_half(density)
    short = gaps <= np.median(gaps)
    pairs = np.bincount(2 * short[:-1] + short[1:], minlength=4).reshape(2, 2)
    assert stats.chi2_contingency(pairs).pvalue > P_VALUE


@pytest.mark.parametrize("density", DENSITIES)
def test_places_in_a_tile_are_uniform(density: float) -> None:
    places = mask(density) % TILE
    for bins in (64, 255, 1024):
        observed = np.bincount(places * bins // TILE, minlength=bins)
        sizes = np.diff(-(-np.arange(bins + 1) * TILE // bins))
        statistic = float((np.square(observed - tiles_for(density) * density * sizes)).sum())
        statistic /= tiles_for(density) * density * (1 - density) * TILE / bins
        assert stats.chi2.sf(statistic * 0.99, bins) > P_VALUE


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("width", [1, 16, 256])
def test_ends_of_tiles_are_like_the_rest(density: float, width: int) -> None:
    places = mask(density) % TILE
    for found in (places < width, places >= TILE - width, (places >= 255) & (places < 255 + width)):
        assert abs(z_score(int(found.sum()), tiles_for(density) * width, density)) < SIGMAS


def overlap_is_by_chance(one: NDArray[np.int64], other: NDArray[np.int64], density: float) -> bool:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return abs(z_score(both, tiles_for(density) * TILE, density**2)) < SIGMAS


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    "other",
    [
        mask_key(1, "identity", "model.layers.0.weight"),
        mask_key(0, "another identity", "model.layers.0.weight"),
        mask_key(0, "identity", "model.layers.1.weight"),
        KEY + 1,
        KEY ^ 1 << 63,
        KEY ^ 1 << 32,
    ],
)
def test_masks_of_other_keys_overlap_by_chance(density: float, other: int) -> None:
    assert overlap_is_by_chance(mask(density), mask(density, other), density)


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_shared_part_of_two_packs(density: float) -> None:
    """Of what either pack keeps, q / (2 - q) is kept by both."""
    one, other = mask(density), mask(density, mask_key(0, "another identity", "model.layers.0.weight"))
    both = len(np.intersect1d(one, other, assume_unique=True))
    assert abs(both / (len(one) + len(other) - both) - density / (2 - density)) < 0.002


@pytest.mark.parametrize("density", DENSITIES)
def test_tiles_overlap_by_chance(density: float) -> None:
    tiles = tiles_for(density)
    assert overlap_is_by_chance(mask(density), mask(density, KEY, tiles), density)
    places, numbers = mask(density) % TILE, mask(density) // TILE
    shifted = np.sort((numbers + 1) % tiles * TILE + places)
    assert overlap_is_by_chance(mask(density), shifted, density)


@pytest.mark.parametrize("density", DENSITIES)
def test_masks_of_other_densities_with_one_key_have_theirs(density: float) -> None:
    positions, _ = select(keep_of(density), KEY, 2, CHUNK)
    assert abs(z_score(len(positions), CHUNK, density)) < SIGMAS


@pytest.mark.parametrize("length", [1, 63, 64, 65, TILE - 1, TILE + 1, CHUNK - 1, CHUNK])
def test_select_is_the_mask_of_its_chunk(length: int) -> None:
    keep = keep_of(0.1)
    positions, counts = select(keep, KEY, 1, length)
    whole = np.full(TILES_PER_CHUNK, TILE, np.int64)
    expected, _ = active().sample_positions(KEY, keep, TILES_PER_CHUNK, whole)
    assert np.array_equal(positions, expected[expected < length])
    assert counts.tolist() == np.bincount(positions // TILE, minlength=-(-length // TILE)).tolist()


@pytest.mark.parametrize("length", [0, 1, TILE, TILE + 1, CHUNK])
def test_select_of_everything(length: int) -> None:
    positions, counts = select(ALL_KEPT, KEY, 0, length)
    assert np.array_equal(positions, np.arange(length))
    assert counts.sum() == length
    assert len(counts) == -(-length // TILE)


def test_rescaled_mask_keeps_the_expected_sum() -> None:
    values = np.random.default_rng(1).normal(1, 1, CHUNK)
    keep = keep_of(0.1)
    positions, _ = select(keep, KEY, 0, CHUNK)
    spread = math.sqrt(float(np.square(values).sum()) * 9)
    assert abs(values[positions].sum() * rescale_factor(keep) - values.sum()) < SIGMAS * spread


@pytest.mark.parametrize(("drop_rate", "keep"), [(0.0, ALL_KEPT), (0.5, 1 << 31), (0.75, 1 << 30), (1 - 2**-40, 1), (1e-12, ALL_KEPT)])
def test_keep_of_drop_rate(drop_rate: float, keep: int) -> None:
    assert keep_of_drop_rate(drop_rate) == keep


@pytest.mark.parametrize("drop_rate", [1.0, -0.1, math.nan, math.inf, -math.inf, 2])
def test_drop_rates_out_of_range(drop_rate: float) -> None:
    with pytest.raises(RecipeError, match="drop_rate"):
        keep_of_drop_rate(drop_rate)


def test_rescale_is_an_f32() -> None:
    for drop_rate in (0.0, 0.3, 0.9, 0.999):
        factor = rescale_factor(keep_of_drop_rate(drop_rate))
        assert factor == np.float32(factor)
        assert abs(factor * (1 - drop_rate) - 1) < 1e-6


def test_mask_keys_differ_by_everything() -> None:
    keys = {mask_key(*args) for args in ((0, "a", "b"), (1, "a", "b"), (0, "ab", ""), (0, "", "ab"), (-1, "a", "b"), (10, "a", "b"))}
    assert len(keys) == 6
    assert all(0 <= key < 1 << 64 for key in keys)
    # Packs carry their keys, but the same call must still give the same pack in every version.
    assert [mask_key(0, "a", "b"), mask_key(-1, "model.layers.0.w", "ä")] == [0x52C060A876CA661E, 0x95F152BF41CA373D]
