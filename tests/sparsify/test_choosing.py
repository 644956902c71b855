"""Sparsifiers that look at the differences: magnitude, breadcrumbs, della; each against its rule on the whole tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import CHUNK, Model, Tensor, cast, moved, random_tensor, tuned_model, write_file
from support.fixtures import Applied, PackOf

import deltapack
from deltapack import Recipe
from deltapack.errors import RecipeError
from deltapack.sparsify.della import Della, epsilon_for, probabilities
from deltapack.sparsify.table import SPARSIFIERS, SparsifyMethod, method_of

STORED = [row.name for row in SPARSIFIERS.values() if not row.random]
BASE = {"long": random_tensor(1, (3, 400_007)), "wide": random_tensor(2, (40, 55), "bf16"), "flat": random_tensor(3, (900,))}


def kept_of(pack: Path, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with deltapack.open_pack(pack) as opened:
        return opened[name].to_sparse()


def difference(base: Model, tuned: Model, name: str) -> np.ndarray[Any, Any]:
    difference: np.ndarray[Any, Any] = tuned[name].f64.astype(np.float32) - base[name].f64.astype(np.float32)
    return difference.reshape(-1)


@pytest.fixture(scope="module")
def tuned() -> Model:
    return tuned_model(BASE, 10)


@pytest.mark.parametrize("drop_rate", [0.5, 0.9, 0.99])
def test_magnitude_keeps_the_largest(pack_of: PackOf, applied: Applied, tuned: Model, drop_rate: float) -> None:
    pack = pack_of(BASE, tuned, sparsify="magnitude", drop_rate=drop_rate, values="f32")
    for name, tensor in BASE.items():
        delta = difference(BASE, tuned, name)
        count = round((1 - drop_rate) * delta.size)
        wanted = np.sort(np.argsort(-np.abs(delta), kind="stable")[:count])
        positions, values = kept_of(pack, name)
        assert np.array_equal(positions, wanted) and np.array_equal(values, delta[wanted])  # as they are: the factor is 1
        start, kept = tensor.f64.astype(np.float32), np.isin(np.arange(delta.size), wanted).reshape(tensor.shape)
        moved_by = cast(start + delta.reshape(tensor.shape), tensor.dtype)
        assert np.array_equal(applied(pack)[name].bits, np.where(kept, moved_by.bits, tensor.bits))
    deltapack.verify(pack, pack.parent / "base.safetensors")


def test_magnitude_keeps_few_changes_exactly(pack_of: PackOf, applied: Applied) -> None:
    changed = BASE["long"].bits.copy()
    changed.reshape(-1)[[5, 70_000, CHUNK + 3]] += np.float32(1)
    tuned = BASE | {"long": Tensor("f32", changed)}
    pack = pack_of(BASE, tuned, sparsify="magnitude", values="f32")
    assert list(kept_of(pack, "long")[0]) == [5, 70_000, CHUNK + 3]
    assert applied(pack) == tuned


def test_breadcrumbs_keeps_the_middle(pack_of: PackOf, tuned: Model) -> None:
    pack = pack_of(BASE, tuned, sparsify="breadcrumbs", drop_rate=0.8, gamma=0.05, values="f32")
    for name in BASE:
        delta = difference(BASE, tuned, name)
        count, outliers = round(0.2 * delta.size), round(0.05 * delta.size)
        wanted = np.sort(np.argsort(-np.abs(delta), kind="stable")[outliers : outliers + count])
        positions, values = kept_of(pack, name)
        assert np.array_equal(positions, wanted) and np.array_equal(values, delta[wanted])


def test_della_drops_by_rank(pack_of: PackOf, tuned: Model) -> None:
    pack = pack_of(BASE, tuned, sparsify="della", drop_rate=0.7, epsilon=0.2, values="f32")
    for name, tensor in BASE.items():
        delta = difference(BASE, tuned, name)
        rows = delta.reshape(-1, tensor.shape[-1])
        ranks = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1)
        density = np.round(0.3 * 2**32) / 2**32
        chance = ((density - 0.2) + 0.4 * (ranks / (rows.shape[1] - 1))).reshape(-1)
        positions, values = kept_of(pack, name)
        assert np.array_equal(values, delta[positions] * (1 / chance[positions]).astype(np.float32))
        # The number kept of each fifth of the ranks is within four standard deviations of what it should be.
        fifth = (ranks.reshape(-1) * 5) // rows.shape[1]
        kept = np.isin(np.arange(delta.size), positions)
        for part in range(5):
            expected = chance[fifth == part].sum()
            spread = (chance * (1 - chance))[fifth == part].sum() ** 0.5
            assert abs(kept[fifth == part].sum() - expected) < 4 * spread


def chances(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return probabilities(len(row), 0.5, 0.2)[np.argsort(np.argsort(np.abs(row), kind="stable"))]


def test_della_rows_that_cross_chunks_do_not_depend_on_the_cut() -> None:
    delta = np.random.default_rng(0).normal(size=2 * CHUNK).astype(np.float32)
    row = 5 * CHUNK // 8
    whole = np.concatenate([chances(part) for part in np.split(delta[: 3 * row], 3)])
    della = Della(0.5, 0.2, 7, row, 3 * row, lambda start, stop: delta[start:stop], unbiased=True)
    for chunk in (0, 1):
        kept = della.select(chunk, delta[chunk * CHUNK : min((chunk + 1) * CHUNK, 3 * row)])
        places = kept.positions.astype(np.int64) + chunk * CHUNK
        assert np.array_equal(kept.values, delta[places] * (1 / whole[places]).astype(np.float32))
        assert kept.counts.sum() == len(places)


def test_della_ranks_very_long_rows_in_pieces() -> None:
    delta = np.random.default_rng(0).normal(size=CHUNK + 100).astype(np.float32)
    della = Della(0.5, 0.2, 7, len(delta), len(delta), lambda start, stop: delta[start:stop], unbiased=False)
    kept = della.select(1, delta[CHUNK:])
    assert np.array_equal(kept.values, delta[CHUNK:][kept.positions])
    assert 20 < len(kept.positions) < 80


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_every_sparsifier_keeps_its_share_of_what_was_there(pack_of: PackOf, tuned: Model, sparsify: str, drop_rate: float) -> None:
    for name, tensor in BASE.items():
        pack = pack_of(BASE, tuned, sparsify=sparsify, drop_rate=drop_rate, rescale=1, values="f32", index="gaps", force=True)
        positions, values = kept_of(pack, name)
        assert np.array_equal(values, difference(BASE, tuned, name)[positions])  # a factor was named, so nothing else changes them
        spread = (tensor.bits.size * drop_rate * (1 - drop_rate)) ** 0.5
        assert abs(len(positions) - (1 - drop_rate) * tensor.bits.size) < 5 * spread


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
def test_every_sparsifier_rescales_as_its_row_says(pack_of: PackOf, tuned: Model, sparsify: str) -> None:
    pack = pack_of(BASE, tuned, sparsify=sparsify, drop_rate=0.75, values="f32")
    (positions, values), row = kept_of(pack, "long"), SPARSIFIERS[sparsify]
    delta = difference(BASE, tuned, "long")[positions]
    ratios = values[delta != 0] / delta[delta != 0]
    expected = {"rate": 4.0, "none": 1.0}.get(row.rescale)
    if expected is None:  # each by its own probability
        assert ratios.min() < 4 < ratios.max() and row.factor(1 << 30) == 1
    else:
        assert np.allclose(ratios, expected, rtol=1e-6, atol=0) and row.factor(1 << 30) == expected


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
@pytest.mark.parametrize("values", ["auto", "int4"])
def test_packs_do_not_depend_on_workers(pack_of: PackOf, tuned: Model, sparsify: str, values: str) -> None:
    packs = [pack_of(BASE, tuned, f"{n}", sparsify=sparsify, values=values, workers=n).read_bytes() for n in (1, 4)]
    assert packs[0] == packs[1]


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
def test_the_pack_says_how_it_was_made(pack_of: PackOf, tuned: Model, sparsify: str) -> None:
    with deltapack.open_pack(pack_of(BASE, tuned, sparsify=sparsify, drop_rate=0.8)) as pack:
        recipe, row = pack.index.recipe, SPARSIFIERS[sparsify]
        assert recipe["method"] == sparsify and method_of(recipe) is row
        every = {option.name for method in SPARSIFIERS.values() for option in method.options}
        assert every & recipe.keys() == {option.name for option in row.options}
        assert recipe.get("epsilon") == ("0.15" if sparsify == "della" else None)
        assert recipe.get("gamma") == ("0.01" if sparsify == "breadcrumbs" else None)
        kinds = {term.index_codec.kept for entry in pack.index.entries for term in entry.terms}
        assert kinds == {"random" if row.random else "stored"}


def test_a_tensor_may_have_its_own_sparsifier(pack_of: PackOf, tuned: Model) -> None:
    override = deltapack.Override("wide", sparsify="magnitude", drop_rate=0.5)
    with deltapack.open_pack(pack_of(BASE, tuned, overrides=(override,))) as pack:
        assert [term.index for term in pack["wide"].entry.terms] == ["bitmap"]
        assert [term.index for term in pack["long"].entry.terms] == ["seeded"]


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
def test_nothing_dropped_is_everything_kept(pack_of: PackOf, applied: Applied, sparsify: str) -> None:
    base = {"x": random_tensor(1, (300,), "bf16")}
    tuned = {"x": moved(base["x"], 2)}
    assert applied(pack_of(base, tuned, sparsify=sparsify, drop_rate=0, values="f32")) == tuned


def test_rescale_is_one_number(pack_of: PackOf, tuned: Model) -> None:
    pack = pack_of(BASE, tuned, sparsify="della", drop_rate=0.5, rescale=4, values="f32")
    positions, values = kept_of(pack, "flat")
    assert np.array_equal(values, difference(BASE, tuned, "flat")[positions] * np.float32(4))


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsify": "nonsense"},
        {"sparsify": "della", "drop_rate": 0.9, "epsilon": 0.1},
        {"sparsify": "della", "drop_rate": 0.9, "epsilon": -0.01},
        {"sparsify": "breadcrumbs", "gamma": 1},
        {"sparsify": "breadcrumbs", "gamma": float("nan")},
    ],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe(**settings)


def test_options_are_fields_of_the_recipe_that_nobody_sets() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Recipe)}
    options = [option for row in SPARSIFIERS.values() for option in row.options]
    assert len({option.name for option in options}) == len(options) >= 2
    for option in options:
        assert fields[option.name] is None


def test_rows_that_cannot_be() -> None:
    with pytest.raises(ValueError):
        SparsifyMethod("drawn", "but not by chance")
    with pytest.raises(ValueError):
        SparsifyMethod("odd", "hopeless before it is risky", by_chance=True, risky=2, hopeless=1)


@pytest.mark.parametrize("stated", [{}, {"method": "linear"}, {"method": ["dare"]}, {"method": None}, {"method": {}}])
def test_packs_that_name_no_sparsifier(stated: dict[str, Any]) -> None:
    assert method_of(stated) is None


@pytest.mark.parametrize("sparsify", STORED)
def test_seeded_is_for_masks_at_random(tmp_path: Path, sparsify: str) -> None:
    base = {"x": random_tensor(1, (20, 15))}
    write_file(tmp_path / "a.safetensors", base)
    write_file(tmp_path / "b.safetensors", tuned_model(base))
    with pytest.raises(RecipeError, match="seeded"):
        deltapack.compress(
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            tmp_path / "c.dpk",
            recipe=Recipe(sparsify=sparsify, index="seeded"),
        )
    assert not (tmp_path / "c.dpk").exists()


def test_epsilon_unless_given() -> None:
    assert epsilon_for(0.5, None) == 0.15
    assert epsilon_for(0.125, None) == 0.0625
    assert epsilon_for(0.875, None) == 0.0625
