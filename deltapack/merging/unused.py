"""Rules of a recipe that would change nothing: refused by name, as a person meant something by them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher

from deltapack.composing.basecheck import BaseTensors
from deltapack.errors import RecipeError
from deltapack.merging.recipe import MergeRecipe, Rule, layer_number
from deltapack.patterns import check_patterns

__all__ = ["nearest_names", "refuse_unused_rules"]

_SHOWN, _KINDS, _COMPARED = 3, 2_000, 128
"""Likeness takes the product of both lengths, so that few and short ones are compared."""


def refuse_unused_rules(recipe: MergeRecipe, base: BaseTensors) -> None:
    """Require that each rule for weights or densities has a tensor to apply to, and each gradient a layer.

    Raises:
        RecipeError: One has none; it names the expression and the nearest names. Or the expressions take too long.
    """
    rules = dict.fromkeys(("weight", rule) for schedule in recipe.weights for rule in schedule.rules)
    rules |= dict.fromkeys(("density", rule) for schedule in recipe.densities for rule in schedule.rules)
    check_patterns([(rule.pattern, "fullmatch") for _, rule in rules], [*base.tensors, *base.aliases])
    for what, rule in rules:
        found = [name for name in base.tensors if rule.pattern is None or re.fullmatch(rule.pattern, name)]
        if not found and base.tensors:
            raise _matches_nothing(what, rule, base)
        if len(set(rule.values)) > 1 and found and all(layer_number(name) is None for name in found):
            raise RecipeError(
                f"a {what} from the first layer to the last has no layers to go over",
                expected="tensors with names such as layers.3.x, h.3.x or blocks.3.x",
                found=", ".join(found[:_SHOWN]),
                hint=f"Give one {what} instead of {len(rule.values)}.",
            )


def _matches_nothing(what: str, rule: Rule, base: BaseTensors) -> RecipeError:
    assert rule.pattern is not None
    tied = next((name for name in base.aliases if re.fullmatch(rule.pattern, name)), None)
    if tied is not None:
        hint = f"{tied} is tied to {base.aliases[tied]}: name that one."
    else:
        hint = f"It has to match the whole name; the nearest are {', '.join(nearest_names(rule.pattern, base.tensors))}."
    return RecipeError(f"the expression of a {what} matches no tensor of the base", found=rule.pattern, hint=hint)


def nearest_names(pattern: str, names: Collection[str]) -> list[str]:
    """Return the names that are most like what a regular expression may have meant, one of each layer's.

    >>> nearest_names(r".*self_atn.*", ["h.0.self_attn.q", "h.1.self_attn.q", "h.0.mlp.up", "wte"])[0]
    'h.0.self_attn.q'
    """
    core = re.sub(r"\(\?[a-z]+:|[.]\*|[][^$()*+?{}|]", "", re.sub(r"\\(.)", r"\1", pattern)).strip(".")[:_COMPARED]
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "0", name), name)
    return sorted(list(kinds.values())[:_KINDS], key=lambda name: (-_likeness(core, name), name))[:_SHOWN]


def _likeness(core: str, name: str) -> float:
    """Return how much a text is like a name, or like one of its parts, from 0 to 1."""
    parts: Iterable[str] = (name, *name.split("."))
    return max(SequenceMatcher(None, core, part, autojunk=False).ratio() for part in parts)
