"""Rules that would change nothing are refused, with the names that were meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.builders import Model, random_tensor, tuned_model
from support.fixtures import Merged, PackOf

from deltapack.errors import RecipeError
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant
from deltapack.merging.unused import nearest_names

BASE: Model = {
    **{f"model.layers.{number}.{part}.weight": random_tensor(number, (30, 40)) for number in range(3) for part in ("self_attn", "mlp")},
    "lm_head.weight": random_tensor(5, (40, 30)),
}


@pytest.fixture
def packs(pack_of: PackOf) -> list[Path]:
    return [pack_of(BASE, tuned_model(BASE, number), f"{number}", drop_rate=0.5) for number in (1, 2)]


@pytest.mark.parametrize("kind", ["weights", "densities"])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule((0.5,), ".*self_atn.*"), r"matches no tensor of the base: found \.\*self_atn\.\*.*model\.layers\.0\.self_attn\.weight"),
        (Rule((0.5,), "lm_head"), "match the whole name; the nearest are lm_head.weight"),
        (Rule((0.2, 0.8), "lm_head.*"), "has no layers to go over.*found lm_head.weight. Give one"),
    ],
)
def test_rules_without_tensors(kind: str, rule: Rule, message: str, packs: list[Path], merged: Merged) -> None:
    schedule = Schedule((Rule((0.5,)), rule))
    given: dict[str, Any] = {kind: (constant(0.5), schedule)}
    with pytest.raises(RecipeError, match=message):
        merged(packs, recipe=MergeRecipe("ties", **given))


def test_rules_with_tensors(packs: list[Path], merged: Merged) -> None:
    schedules = (Schedule((Rule((0.5, 0.5), "lm_head.*"), Rule((0.2, 0.8), ".*mlp.*"))), Schedule((Rule((0.3, 0.6)),)))
    assert merged(packs, recipe=MergeRecipe(weights=schedules)).keys() == BASE.keys()


def test_an_expression_for_a_tied_name(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_model

    import deltapack

    for name, scale in (("base", 0.0), ("tuned", 0.01)):
        torch.manual_seed(0)
        embed, head = torch.nn.Embedding(20, 10), torch.nn.Linear(10, 20, bias=False)
        model = torch.nn.ModuleDict({"embed": embed, "head": head})
        head.weight = embed.weight
        with torch.no_grad():
            embed.weight.add_(scale)
        save_model(model, str(tmp_path / f"{name}.safetensors"))
    deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "t.dpk")
    recipe = MergeRecipe(weights=(Schedule((Rule((0.5,), "head.*"),)),))
    with pytest.raises(RecipeError, match=r"head\.weight is tied to embed\.weight: name that one"):
        deltapack.merge(tmp_path / "base.safetensors", [tmp_path / "t.dpk"], tmp_path / "out.safetensors", recipe=recipe)


def test_nearest_names() -> None:
    names = ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "wte.weight", "ln_f.bias"]
    assert nearest_names(r"h\.\d+\.mpl\..*", names)[0] == "h.0.mlp.c_fc.weight"
    assert nearest_names("(?:lnf).*", names)[0] == "ln_f.bias"
    assert len(nearest_names("x", names)) == 3 and nearest_names("x", []) == []
