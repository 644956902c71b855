"""Settings that would do nothing are refused, and those that do something are not."""

from __future__ import annotations

import pytest

from deltapack import Override, Recipe
from deltapack.errors import RecipeError
from deltapack.packing.effects import check_effects, check_options

ROLES = {
    "model.layers.0.mlp.up_proj.weight": "weight",
    "model.layers.0.input_layernorm.weight": "vector",
    "bn.running_mean": "statistic",
    "position_ids": "integer",
    "q.qweight": "quantised",
}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(epsilon=0.1), r"epsilon does nothing: expected sparsify=della, found sparsify=dare"),
        (Recipe(gamma=0.1, sparsify="magnitude"), r"gamma does nothing.*--sparsify breadcrumbs"),
        (Recipe(fidelity=0.1, values="int4"), r"fidelity does nothing: expected values=auto, found values=int4"),
        (Recipe(include="up_porj"), r"--include matches no tensor.*such as 'model\.layers\.0\.mlp\.up_proj\.weight'.*found 'up_porj'"),
        (Recipe(exclude="lm_head"), r"--exclude matches no tensor"),
        (Recipe(overrides=(Override("up_proj", drop_rate=0.5),)), r"--set matches no tensor: .*whole name"),
        (Recipe(overrides=(Override(".*norm.*", drop_rate=0.5),)), r"drop-rate, which does nothing.*found vector.*role=weight"),
        (Recipe(overrides=(Override(".*up_proj.*", drop_rate=0.5, role="vector"),)), r"or role=vector, which allows values and rescale"),
        (Recipe(overrides=(Override(".*up_proj.*", values="bf16", role="exact"),)), r"found exact.*or role=exact, which allows none"),
        (Recipe(overrides=(Override(".*norm.*", values="bf16", index="gaps"),)), r"sets index, which does nothing"),
        (Recipe(overrides=(Override(r"bn\..*", values="f32"),)), r"sets values.*found statistic"),
        (Recipe(overrides=(Override("position_ids", role="weight"),)), r"sets role, which does nothing.*found integer"),
        (Recipe(exclude="up_proj", fidelity=0.1), r"fidelity does nothing: expected a weight with values=auto"),
        (Recipe(overrides=(Override("position_ids", role="weight", drop_rate=0.5),)), r"drop-rate, which does nothing"),
        (Recipe(exclude="up_proj", overrides=(Override(".*up_proj.*", drop_rate=0.5),)), r"drop-rate, which does nothing.*found exact"),
    ],
)  # fmt: skip
def test_refused(recipe: Recipe, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        check_effects(recipe, ROLES)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(epsilon=0.05, overrides=(Override(".*up_proj.*", sparsify="della"),)),
        Recipe(fidelity=0.1, values="int4", overrides=(Override(".*up_proj.*", values="auto"),)),
        Recipe(include="up_proj", exclude="norm"),
        Recipe(overrides=(Override(".*norm.*", values="bf16"), Override(".*", drop_rate=0.5))),
        Recipe(overrides=(Override(".*norm.*", role="weight"), Override(".*norm.*", drop_rate=0.5))),
        Recipe(overrides=(Override("bn.*", role="vector", rescale=2.0), Override("position_ids", role="exact"))),
    ],
)
def test_accepted(recipe: Recipe) -> None:
    check_effects(recipe, ROLES)


def test_options_are_looked_at_without_a_model() -> None:
    with pytest.raises(RecipeError):
        check_options(Recipe(gamma=0.02))
    check_options(Recipe(gamma=0.02, sparsify="breadcrumbs"))
