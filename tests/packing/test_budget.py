"""Budgets: what they say, what they refuse, and that a recipe either has one or drops at a rate."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deltapack import Budget, Override, Recipe
from deltapack.errors import RecipeError
from deltapack.format.canonical import dump_canonical, load_canonical
from deltapack.packing.budget import QUALITIES


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": "50MB", "bits": 0.25},
        {"ratio": 100, "quality": "high"},
        {"size": 0},
        {"size": -5},
        {"size": True},
        {"size": 1.5},
        {"size": 1 << 63},
        {"size": "50"[:0]},
        {"size": "-5MB"},
        {"size": "5 apples"},
        {"size": "9" * 5000},
        {"size": "0.0001B"},
        {"size": b"5MB"},
        {"size": [5]},
        {"ratio": 0},
        {"ratio": math.nan},
        {"ratio": math.inf},
        {"ratio": "100"},
        {"bits": 0.0},
        {"bits": -1},
        {"bits": math.nan},
        {"bits": 10**400},
        {"bits": True},
        {"quality": "best"},
        {"quality": ""},
        {"quality": 1},
        {"quality": ["high"]},
    ],
)
def test_what_is_no_budget(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Budget(**options)


def test_a_word_that_is_near_is_proposed() -> None:
    with pytest.raises(RecipeError, match="balanced"):
        Budget(quality="balance")


def test_bytes_of_a_budget() -> None:
    assert Budget(size="1.5KB").pack_bytes(10, 20) == 1500 and Budget(size=77).pack_bytes(10, 20) == 77
    assert Budget(ratio=100).pack_bytes(10_000, 40_000) == 400
    assert Budget(bits=0.5).pack_bytes(10_000, 40_000) == 625
    assert all(Budget(quality=name).pack_bytes(10_000, 40_000) is None for name in QUALITIES)
    assert Budget(bits=1e300).pack_bytes(10**9, 10**9) == 1 << 62


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("drop_rate", 0.9),
        ("drop_rate", 0.0),
        ("values", "int4"),
        ("index", "gaps"),
        ("rescale", 2.0),
        ("sparsify", "magnitude"),
        ("fidelity", 0.1),
        ("epsilon", 0.01),
        ("gamma", 0.1),
    ],
)
def test_a_budget_and_what_says_how_to_drop_contradict_each_other(option: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"{option} does nothing within a budget"):
        Recipe(budget=Budget(bits=0.25), **{option: value})


@pytest.mark.parametrize("budget", ["0.25", 0.25, {"bits": 0.25}, Budget])
def test_a_budget_of_another_type(budget: Any) -> None:
    with pytest.raises(RecipeError, match="budget is not a Budget"):
        Recipe(budget=budget)


def test_nothing_but_exact_means_anything_where_all_is_exact() -> None:
    with pytest.raises(RecipeError, match="budget does nothing where all is exact"):
        Recipe(exact=True, budget=Budget(bits=0.25))


def test_overrides_within_a_budget() -> None:
    overrides = (
        Override("own", drop_rate=0.5),
        Override("coded", values="int4"),
        Override("norm", role="vector"),
        Override("b", role="weight"),
    )
    recipe = Recipe(budget=Budget(bits=0.25), overrides=overrides, exclude="out", exact="bits")
    own, coded, norm, plain = (recipe.for_tensor(name) for name in ("own", "coded", "norm", "plain"))
    assert (own.budgeted, own.keep) == (False, 1 << 31)
    assert (coded.budgeted, coded.keep, coded.values) == (False, Recipe(drop_rate=0.9).for_tensor("x").keep, "int4")
    assert (norm.budgeted, norm.role) == (False, "vector")
    assert plain.budgeted and recipe.for_tensor("b", "vector").budgeted
    assert not any(recipe.for_tensor(name).budgeted for name in ("out", "bits"))
    assert not recipe.for_tensor("bias", "vector").budgeted and not Recipe(drop_rate=0.9).for_tensor("plain").budgeted


def test_a_pack_says_which_it_is() -> None:
    stated = Recipe(budget=Budget(size="50 MB"), seed=3, overrides=(Override("a", drop_rate=0.5),)).to_json()
    assert stated == {"method": "budget", "target": "size=50MB", "seed": "3", "overrides": [{"pattern": "a", "drop_rate": "0.5"}]}
    assert load_canonical(dump_canonical(stated), 8) == stated
    dare = Recipe(drop_rate=0.9).to_json()
    assert (dare["method"], dare["drop_rate"]) == ("dare", "0.9") and "target" not in dare
