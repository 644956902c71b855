"""Recipes: ranges, overrides, and what a pack says of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from deltapack.errors import RecipeError
from deltapack.format.canonical import dump_canonical, load_canonical
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.packing.budget import Budget
from deltapack.packing.overrides import Override, parse_override
from deltapack.packing.recipe import INDEX_CHOICES, VALUE_CHOICES, Recipe
from deltapack.packing.sampling import _AUTO_ORDER


def test_what_a_drop_rate_means() -> None:
    settings = Recipe(drop_rate=0.9).for_tensor("a")
    assert (settings.keep, settings.values, settings.index, settings.whole) == (round(0.1 * 2**32), "auto", "auto", False)
    assert settings.factor == np.float32(2**32 / settings.keep)


@pytest.mark.parametrize(
    "options",
    [
        {"drop_rate": 1.0},
        {"drop_rate": -0.1},
        {"drop_rate": math.nan},
        {"values": "int0"},
        {"values": ""},
        {"index": "tree"},
        {"index": "all"},
        {"non_finite": "ignore"},
        {"rescale": math.nan},
        {"rescale": math.inf},
        {"rescale": 1e39},
        {"seed": 1.5},
        {"seed": True},
        {"seed": 1 << 63},
        {"seed": -(1 << 63)},
        {"fidelity": 0.0},
        {"fidelity": -1.0},
        {"fidelity": math.nan},
        {"fidelity": math.inf},
        {"include": "("},
        {"exclude": "*"},
        {"include": "a{99999999999999999999}"},
        {"exclude": "(" * 5000 + ")" * 5000},
        {"include": "\ud800"},
        {"overrides": (Override("("),)},
        {"overrides": (Override("a", drop_rate=1.0),)},
        {"overrides": (Override("a", values="int0"),)},
        {"overrides": (Override("a", index="all"),)},
        {"overrides": (Override("a", rescale=math.inf),)},
        {"drop_rate": "0.9"},
        {"drop_rate": True},
        {"drop_rate": [0.9]},
        {"fidelity": "0.1"},
        {"rescale": "2"},
        {"epsilon": "0.1"},
        {"gamma": "0.1"},
        {"seed": "1"},
        {"values": 4},
        {"values": ["int4"]},
        {"index": {}},
        {"sparsify": ["dare"]},
        {"non_finite": None},
        {"include": 3},
        {"exclude": b"a"},
        {"overrides": "a:drop-rate=0.5"},
        {"overrides": Override("a")},
        {"overrides": ("a",)},
        {"overrides": (Override(3),)},  # type: ignore[arg-type]
        {"overrides": (Override("a", drop_rate="0.5"),)},  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe(**options)


@pytest.mark.parametrize("values", VALUE_CHOICES)
@pytest.mark.parametrize("index", INDEX_CHOICES)
def test_choices(values: str, index: str) -> None:
    settings = Recipe(values=values, index=index).for_tensor("a")
    assert (settings.values, settings.index) == (values, index)


def test_every_value_codec_can_be_asked_for_and_auto_takes_the_smallest_first() -> None:
    assert ("auto", *VALUE_CODECS) == VALUE_CHOICES and {*INDEX_CHOICES, "all"} == {"auto", *INDEX_CODECS}
    assert sorted(_AUTO_ORDER) == sorted(row.name for row in VALUE_CODECS.values() if row.auto)
    places = [list(VALUE_CODECS).index(name) for name in _AUTO_ORDER]
    assert places == sorted(places, reverse=True)
    sizes = [row.bits for row in VALUE_CODECS.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_the_last_override_that_matches_wins_setting_by_setting() -> None:
    recipe = Recipe(
        drop_rate=0.9,
        overrides=(
            Override("a.*", drop_rate=0.5, values="bf16"),
            Override("ab", values="int8", rescale=3.0),
            Override("b", index="gaps"),
        ),
    )
    ab, a, b, xa = (recipe.for_tensor(name) for name in ("ab", "a", "b", "xa"))
    assert (ab.keep, ab.values, ab.factor) == (1 << 31, "int8", 3.0)
    assert (a.keep, a.values, a.factor) == (1 << 31, "bf16", 2.0)
    assert (b.index, b.values) == ("gaps", "auto")
    assert xa == Recipe(drop_rate=0.9).for_tensor("xa")  # the whole name must match


def test_a_drop_rate_of_its_own_brings_its_own_rescale() -> None:
    assert Recipe(rescale=7.0, overrides=(Override("a", drop_rate=0.5),)).for_tensor("a").factor == 7.0
    assert Recipe(drop_rate=0.9, overrides=(Override("a", drop_rate=0.5),)).for_tensor("a").factor == 2.0


@pytest.mark.parametrize(
    ("include", "exclude", "whole"),
    [
        (None, None, ""),
        ("mlp", None, "attn norm"),
        (None, "norm", "norm"),
        ("mlp|norm", "norm", "attn norm"),
        ("^m", "p$", "mlp attn norm"),
    ],
)
def test_include_and_exclude(include: str | None, exclude: str | None, whole: str) -> None:
    recipe = Recipe(drop_rate=0.9, include=include, exclude=exclude)
    assert [name for name in ("mlp", "attn", "norm") if recipe.for_tensor(name).whole] == whole.split()


def test_json_is_canonical_and_says_everything_that_differs() -> None:
    recipe = Recipe(
        drop_rate=np.float64(0.99),
        values="int4",
        rescale=2,
        seed=-5,
        include="é",
        overrides=(Override("a", drop_rate=0.5), Override("b", values="sign")),
    )
    document = recipe.to_json()
    assert document == {
        "method": "dare",
        "drop_rate": "0.99",
        "values": "int4",
        "index": "auto",
        "rescale": "2.0",
        "seed": "-5",
        "include": "é",
        "fidelity": "0.05",
        "overrides": [{"pattern": "a", "drop_rate": "0.5"}, {"pattern": "b", "values": "sign"}],
    }
    assert load_canonical(dump_canonical(document), 6) == document


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:values=bf16", Override("a", values="bf16")),
        ("a:drop-rate=0.5,values=bf16,index=gaps,rescale=2", Override("a", 0.5, "bf16", "gaps", 2.0)),
        ("a:drop_rate=.5", Override("a", drop_rate=0.5)),
        ("(?:x|y):z: values = int4 ", Override("(?:x|y):z", values="int4")),
        (":values=f32", Override("", values="f32")),
    ],
)
def test_parse_override(text: str, expected: Override) -> None:
    assert parse_override(text) == expected
    Recipe(overrides=(expected,))


@pytest.mark.parametrize("text", ["", "a", "a:", ":", "a:values", "a:b=c", "a:drop-rate=x", "values=bf16", "a:values=bf16,", "a:pattern=b"])
def test_overrides_that_cannot_be_read(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_override(text)


@pytest.mark.parametrize("asked", [{"sparsify": "dare"}, {"values": "auto"}, {"index": "auto"}, {"drop_rate": 0.9}, {"fidelity": 0.05}])
def test_what_is_usual_of_dropping_asks_for_dropping_where_it_is_given(asked: dict[str, Any]) -> None:
    recipe = Recipe(**asked)
    assert recipe.target is None and Recipe().target == Budget(quality="balanced")
    assert recipe.to_json() == Recipe(drop_rate=0.9).to_json() and recipe.dropping == Recipe(drop_rate=0.9).dropping
    with pytest.raises(RecipeError, match="does nothing within a budget"):
        Recipe(budget=Budget(bits=1.0), **asked)
