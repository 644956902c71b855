"""When a merge warns: every threshold from both sides, and the figures in the sentences."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.builders import Model, random_tensor, tuned_model

from deltapack.merging.advice import LARGEST_SUM_OF_WEIGHTS, MOSTLY, changed_and_alone, shown_weights, warnings_of
from deltapack.merging.arguments import parse_schedules
from deltapack.merging.planning import plan_merge
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant
from deltapack.merging.request import MergeRequest
from deltapack.merging.surveying import _Sums, _warnings

PackOf = Callable[..., Path]
BASE: Model = {"model.layers.0.w": random_tensor(1, (200, 300)), "model.layers.1.w": random_tensor(2, (5000,))}


@pytest.fixture
def warned(pack_of: PackOf, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that packs fine-tunes by these recipes and gives the warnings about their merge."""

    def warn(recipe: MergeRecipe, *packs: dict[str, object], same: bool = False) -> list[str]:
        made = []
        for number, options in enumerate(packs):
            made.append(pack_of(BASE, tuned_model(BASE, 7 if same else number), f"{number}", force=True, **options))
        with ExitStack() as stack:
            plan = plan_merge(stack, MergeRequest(tmp_path / "base.safetensors", made, recipe))
            return warnings_of(plan)

    return warn


def test_constants() -> None:
    assert (LARGEST_SUM_OF_WEIGHTS, MOSTLY) == (1.2, 0.5)


TOO_MUCH = "merges above 1.2 often lose quality; try --weight with less"
NOT_ALL = parse_schedules("weight", ["0=1"], [Path("0.dpk"), Path("1.dpk")])
BY_LAYER = (Schedule((Rule((0.1, 2.0)),)), constant(1.1))
HALVES = (Schedule((Rule((0.5, 0.7)), Rule((0.25,)))), constant(0.5))


@pytest.mark.parametrize(
    ("weights", "parameters", "found"),
    [
        ((constant(0.7), constant(0.5)), {}, None),
        ((constant(0.7), constant(0.51)), {}, "1.21"),
        ((constant(1.5), constant(-0.31)), {}, None),
        ((constant(1.0), constant(1.0)), {}, "2 (1 for each of 2 packs)"),
        ((), {}, "2 (1 for each of 2 packs)"),
        ((constant(0.5),), {"lambda": 3.0}, "3 (0.5 for each of 2 packs, times lambda 3)"),
        ((constant(2.0), constant(1.0)), {"lambda": 0.4}, None),
        (NOT_ALL, {}, "2 (1 for each of 2 packs)"),
        (BY_LAYER, {}, "3.1 (in model.layers.1.w)"),
        (HALVES, {}, None),
    ],
)
def test_sum_of_weights(
    weights: tuple[Schedule, ...], parameters: dict[str, float], found: str | None, warned: Callable[..., list[str]]
) -> None:
    warnings = warned(MergeRecipe(weights=weights, parameters=parameters), {"drop_rate": 0.1}, {"drop_rate": 0.1})
    assert warnings == ([] if found is None else [f"the weights add up to {found}: {TOO_MUCH}"])


def test_three_times_a_third_of_the_largest_sum(warned: Callable[..., list[str]]) -> None:
    """0.4 + 0.4 + 0.4 is above 1.2 in f64."""
    three = ({"drop_rate": 0.1},) * 3
    assert not warned(MergeRecipe(weights=(constant(0.4),)), *three)
    assert warned(MergeRecipe(weights=(constant(0.41),)), *three) == [f"the weights add up to 1.23 (0.41 for each of 3 packs): {TOO_MUCH}"]


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        (MergeRecipe(weights=(constant(0.5), constant(0.5)), parameters={"lambda": 0}), "lambda 0"),
        (MergeRecipe(weights=(constant(0),)), "a weight of 0 for every pack"),
        (MergeRecipe(weights=(constant(0), constant(1))), None),
        (MergeRecipe("sce", parameters={"select_topk": 0}), "select_topk 0"),
        (MergeRecipe("breadcrumbs", weights=(constant(0.5),), parameters={"gamma": 1, "lambda": 0}), "lambda 0 and gamma 1"),
    ],
)
def test_numbers_that_leave_nothing(recipe: MergeRecipe, found: str | None, warned: Callable[..., list[str]]) -> None:
    warnings = warned(recipe, {"drop_rate": 0.1}, {"drop_rate": 0.1})
    assert [text for text in warnings if "the result is the base" in text] == ([f"with {found} the result is the base"] if found else [])


def test_weights_that_do_not_add_up_to_a_sum(warned: Callable[..., list[str]]) -> None:
    """Of one pack, or divided by their sum or by the packs that agree."""
    two = ({"drop_rate": 0.1}, {"drop_rate": 0.1})
    assert not warned(MergeRecipe(weights=(constant(3.0),)), two[0])
    assert not warned(MergeRecipe(weights=(constant(3.0), constant(1.0)), parameters={"normalize": 1.0}), *two)
    assert not warned(MergeRecipe("average"), *two)
    assert not warned(MergeRecipe("ties", weights=(constant(3.0),), semantics="peft"), *two)


@pytest.mark.parametrize(("drop_rate", "expected"), [(0.25, False), (0.42, True)])
def test_normalize_where_packs_hardly_overlap(drop_rate: float, expected: bool, warned: Callable[..., list[str]]) -> None:
    """Two masks of density q: one pack alone keeps (2 - 2q) / (2 - q) of the changed elements, a half at q = 2/3."""
    warnings = warned(MergeRecipe("ties", parameters={"normalize": 1.0}), {"drop_rate": drop_rate}, {"drop_rate": drop_rate})
    density = 1 - drop_rate
    share = (2 - 2 * density) / (2 - density)
    assert bool(warnings) is expected is (share >= MOSTLY)
    assert all(f"and {100 * share:.0f} % of the changed elements are kept by one pack only" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("sparsify", "drop_rate", "expected"), [("dare", 0.9, True), ("dare", 0.2, False), ("della", 0.9, True), ("magnitude", 0.9, False)]
)
def test_dividing_by_those_that_agree(sparsify: str, drop_rate: float, expected: bool, warned: Callable[..., list[str]]) -> None:
    options: dict[str, object] = {"sparsify": sparsify, "drop_rate": drop_rate}
    warnings = warned(MergeRecipe("ram"), options, options)
    assert ["divides by the packs that agree" in warning for warning in warnings] == [True] * expected


def test_methods_for_packs_of_one_kind(warned: Callable[..., list[str]]) -> None:
    random, largest = {"drop_rate": 0.5}, {"sparsify": "magnitude", "drop_rate": 0.5}
    (warning,) = warned(MergeRecipe("dare_linear", weights=(constant(0.5),)), random, largest)
    assert "1.dpk was made with magnitude, not dare: dare_linear takes its elements as they are" in warning


def test_masks_of_one_key(warned: Callable[..., list[str]]) -> None:
    recipe, options = MergeRecipe(weights=(constant(0.5), constant(0.5))), {"drop_rate": 0.5}
    (warning,) = warned(recipe, options, options, same=True)
    assert "0.dpk and " in warning and "keep the same positions" in warning
    assert not warned(recipe, options, options | {"seed": 1}, same=True)
    assert not warned(recipe, options, {"drop_rate": 0.6}, same=True)
    assert not warned(recipe, options, options)


def test_shown_weights(pack_of: PackOf, tmp_path: Path) -> None:
    packs = [pack_of(BASE, tuned_model(BASE, number), f"{number}") for number in (1, 2)]
    by_layer = Schedule((Rule((0.1, 0.9)),))
    recipes: list[tuple[MergeRecipe, list[float | None]]] = [
        (MergeRecipe(), [1.0, 1.0]),
        (MergeRecipe(weights=(constant(0.5), by_layer)), [0.5, None]),
        (MergeRecipe(weights=parse_schedules("weight", ["2=0.25"], packs)), [1.0, 0.25]),
        (MergeRecipe("ram"), [None, None]),
    ]
    for recipe, expected in recipes:
        with ExitStack() as stack:
            assert shown_weights(plan_merge(stack, MergeRequest(tmp_path / "base.safetensors", packs, recipe))) == expected


def test_chances_of_masks() -> None:
    assert changed_and_alone([]) == (0, 0)
    assert changed_and_alone([0.25]) == (0.25, 0.25)
    assert changed_and_alone([0.5, 0.25]) == (0.625, 0.5)
    assert changed_and_alone([1, 1]) == (1, 0)


@pytest.mark.parametrize(
    ("shared", "expected", "warns"),
    [
        (2100, 1000, False),  # 2 x 1000 + 10 x sqrt(1000) = 2316
        (2316, 1000, False),
        (2317, 1000, True),
        (10, 0, False),
        (11, 0, True),
        (5000, float("nan"), False),
    ],
)
def test_masks_that_share_too_much(shared: float, expected: float, warns: bool) -> None:
    sums = _Sums(10_000, 8000, shared, 0, expected, np.zeros((2, 2)), np.zeros(2), np.zeros(2))
    warnings = _warnings(sums)
    assert len(warnings) == warns
    if warns:
        assert f"{100 * shared / 8000:.1f} % of the changed elements" in warnings[0]
        assert f"independent masks would share {100 * expected / 8000:.1f} %" in warnings[0]


def test_statistics_are_merged_as_weights_are(tmp_path: Path) -> None:
    from support.builders import write_file

    import deltapack

    base = {"w": random_tensor(1, (60, 60)), "bn.running_var": random_tensor(2, (50,))}
    path = write_file(tmp_path / "base.safetensors", base)
    packs = []
    for seed in (1, 2):
        tuned = write_file(tmp_path / f"{seed}.safetensors", tuned_model(base, seed))
        packs.append(tmp_path / f"{seed}.dpk")
        deltapack.compress(path, tuned, packs[-1])
    report = deltapack.merge(path, packs, tmp_path / "out.safetensors", weights=[0.5, 0.5])
    assert [warning for warning in report.warnings if "statistics are merged as weights are (bn.running_var)" in warning]
