"""Weights by tensor: rules, gradients, and the texts of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapack.errors import RecipeError
from deltapack.merging.arguments import find_pack, parse_parameter, parse_schedules, recipe_of
from deltapack.merging.recipe import Layers, MergeRecipe, Rule, Schedule, constant

PACKS = [Path("a/math.dpk"), Path("b/code.dpk"), Path("b/chat:v2.dpk")]
NAMES = ["model.embed_tokens.weight", *(f"model.layers.{n}.mlp.up_proj.weight" for n in range(5)), "lm_head.weight"]
LAYERS = Layers.of(NAMES)


def values(texts: list[str], name: str = "x") -> list[float | None]:
    return [schedule.at(name, LAYERS.depth(name)) for schedule in parse_schedules("weight", texts, PACKS)]


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.layers.0.w", 0),
        ("model.layers.2.w", 0.5),
        ("transformer.h.4.attn.w", 1),
        ("encoder.layer.1.w", 0.25),
        ("lm_head.weight", 0),
        ("model.layersx.3.w", 0),
        ("layers.99999999999999999999.w", 0),
    ],
)
def test_depth(name: str, depth: float) -> None:
    assert LAYERS.depth(name) == depth


def test_a_model_of_one_layer_is_at_its_end_and_one_without_at_its_start() -> None:
    assert Layers.of(["layers.0.w"]).depth("layers.0.w") == 1
    assert Layers.of(["w"]).depth("w") == 0


def test_each_sub_folder_has_layers_of_its_own() -> None:
    layers = Layers.of(["unet/blocks.2.w", "unet/blocks.0.w", "a/te/layers.4.w", "layers.8.w", "vae/w", "unet/out.w"])
    depths = {"unet/blocks.1.w": 0.5, "unet/h.2.w": 1, "a/te/model.layers.1.w": 0.25, "layers.4.w": 0.5, "vae/w": 0, "unet/out.w": 0}
    assert {name: layers.depth(name) for name in depths} == depths


@given(depth=st.floats(0, 1), points=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5))
def test_a_gradient_stays_between_its_neighbours(depth: float, points: list[float]) -> None:
    found = Rule(tuple(points)).at(depth)
    place = depth * (len(points) - 1)
    around = points[int(place) : int(place) + 2]
    assert min(around) - 1e-9 <= found <= max(around) + 1e-9
    assert Rule(tuple(points)).at(0) == points[0] and Rule(tuple(points)).at(1) == points[-1]


def test_plain_numbers() -> None:
    assert values(["0.5"]) == [0.5] * 3
    assert values(["0.5", "-1", "1e-2"]) == [0.5, -1, 0.01]


@pytest.mark.parametrize("name", ["b/code.dpk", "code.dpk", "code"])
def test_a_pack_by_its_name(name: str) -> None:
    assert values([f"{name}=0.3"]) == [None, 0.3, None]
    assert values(["0.5", f"{name}=0.3"]) == [0.5, 0.3, 0.5]


def test_patterns_and_gradients() -> None:
    texts = ["1", r".*mlp.*:math=0.2", r"model\.layers\.[34]\..*:*=0", "chat:v2=0.1,0.9"]
    assert values(texts, NAMES[1]) == [0.2, 1, 0.1]
    assert values(texts, NAMES[3]) == [0.2, 1, pytest.approx(0.5)]
    assert values(texts, NAMES[4]) == [0, 0, pytest.approx(0.7)]  # of several that fit the last one wins
    assert values(texts, NAMES[6]) == [1, 1, 0.1]
    assert values(["(?:lm_head).*:code=0.4"], NAMES[6]) == [None, 0.4, None]


@pytest.mark.parametrize(
    "texts",
    [["1", "2"], ["x"], ["math=x"], ["math="], ["=1"], ["nobody=1"], ["(:math=1"], ["math=1,"], ["nan"], ["math=inf"], ["1e999"], ["x:=1"]],
)
def test_bad_texts(texts: list[str]) -> None:
    with pytest.raises(RecipeError):
        parse_schedules("weight", texts, PACKS)


def test_an_ambiguous_name() -> None:
    with pytest.raises(RecipeError, match="several packs"):
        parse_schedules("weight", ["x=1"], [Path("a/x.dpk"), Path("b/x.dpk")])


def test_parameters() -> None:
    assert parse_parameter("select-topk=0.5") == ("select_topk", 0.5)
    for text in ("r", "r=", "r=x"):
        with pytest.raises(RecipeError):
            parse_parameter(text)


def test_effective_weights() -> None:
    recipe = MergeRecipe("linear", (constant(1), constant(3)), parameters={"normalize": True, "lambda": 2}).for_packs(2)
    assert recipe.weights_at("x", 0, 2) == [0.5, 1.5]
    assert MergeRecipe("linear", (constant(1), constant(-1)), parameters={"normalize": True}).weights_at("x", 0, 2) == [1, -1]
    assert MergeRecipe("average").weights_at("x", 0, 4) == [0.25] * 4
    assert MergeRecipe("ties", (constant(2), constant(3))).weights_at("x", 0, 2) == [2, 3]


def test_what_a_pack_states() -> None:
    schedule = Schedule((Rule((1.0,)), Rule((0.25, 0.5), "a.*")))
    recipe = MergeRecipe("ties", (schedule, constant(0.5)), densities=(constant(0.2),), parameters={"lambda": 0.5}).for_packs(2)
    assert recipe.to_json(["x", "y"]) == {
        "method": "ties",
        "parameters": {"normalize": "1.0", "lambda": "0.5"},
        "packs": [
            {"id": "x", "weight": [{"values": ["1.0"]}, {"pattern": "a.*", "values": ["0.25", "0.5"]}], "density": "0.2"},
            {"id": "y", "weight": "0.5", "density": "0.2"},
        ],
    }


@pytest.mark.parametrize("weights", ["x", "0.5", [None], ["x"], ["0.5"], [10**400], [object()], [float("nan")], {"math": "0.5"}, True])
def test_refuses_weights_that_are_no_numbers(weights: Any) -> None:
    with pytest.raises(RecipeError):
        recipe_of(PACKS, weights, "linear", None, None, None)
    with pytest.raises(RecipeError):
        recipe_of(PACKS, None, "ties", None, weights, None)


def test_one_number_is_for_all_packs() -> None:
    recipe = recipe_of(PACKS, 0.5, "ties", None, 0.25, None).for_packs(3)
    assert recipe.weights_at("x", 0, 3) == [0.5] * 3
    assert [schedule.at("x", 0) for schedule in recipe.densities] == [0.25] * 3


@pytest.mark.parametrize(
    ("texts", "overruled"),
    [
        (["0.5", "*=0.7"], "0.5"),
        (["math=0.5", "math=0.7"], "math=0.5"),
        (["math=0.5", "*=0.7"], "math=0.5"),
        ([".*mlp.*:math=0.5", ".*mlp.*:*=0.7"], ".*mlp.*:math=0.5"),
        (["1", "2", "3", "code=4"], "2"),
        (["math=0.5", "0.7"], None),
        (["*=0.5", "math=0.7"], None),
        (["1", "1", "1"], None),
    ],
)
def test_what_later_texts_overrule_is_refused(texts: list[str], overruled: str | None) -> None:
    if overruled is None:
        assert len(parse_schedules("weight", texts, PACKS)) == 3
        return
    with pytest.raises(RecipeError, match="overrules it") as caught:
        parse_schedules("weight", texts, PACKS)
    assert caught.value.what.startswith(f"--weight {overruled} has no effect")


def test_as_many_numbers_as_packs_ask_which_is_meant() -> None:
    with pytest.raises(RecipeError, match="for each pack, or from the first layer to the last") as caught:
        parse_schedules("density", ["0.6,0.4,0.2"], PACKS)
    assert caught.value.hint is not None and "--density 0.6 --density 0.4 --density 0.2" in caught.value.hint
    assert "--density '*=0.6,0.4,0.2'" in caught.value.hint
    assert values(["*=0.6,0.4,0.2"], NAMES[3]) == [pytest.approx(0.4)] * 3
    assert values(["0.6,0.4"], NAMES[3]) == [pytest.approx(0.5)] * 3
    assert len(parse_schedules("weight", ["0.6"], PACKS[:1])) == 1


def test_packs_of_one_name() -> None:
    """By their paths where these differ; a pack that is given twice has one weight for each time."""
    apart, twice = [Path("a/x.dpk"), Path("b/x.dpk")], [Path("x.dpk"), Path("x.dpk")]
    with pytest.raises(RecipeError, match=r"several packs: expected one of a/x\.dpk, b/x\.dpk, found x\.dpk\. Give the whole path"):
        parse_schedules("weight", ["x.dpk=1"], apart)
    assert [schedule.single for schedule in parse_schedules("weight", ["b/x.dpk=0.5"], apart)] == [1, 0.5]
    with pytest.raises(RecipeError, match=r"given 2 times: found x\. To tell them apart, give one number for each pack, in their order"):
        parse_schedules("weight", ["x=1"], twice)
    with pytest.raises(RecipeError, match="give a copy of it under another name"):
        find_pack("assets", "x", twice, ("base",))


def test_a_number_for_all_tensors() -> None:
    assert Schedule(()).single == 1
    assert Schedule((Rule((0.2,), "a"), Rule((0.5,)))).single == 0.5
    assert Schedule((Rule((0.5,)), Rule((0.2,), "a"))).single is None
    assert Schedule((Rule((0.5, 0.6)),)).single is None
    assert Schedule(()).to_json() == "1.0"
