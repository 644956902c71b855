"""Settings that would do nothing are refused: who gave them meant something by them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from deltapack.errors import RecipeError
from deltapack.packing.overrides import OF_VECTORS, Override, settings_of
from deltapack.packing.recipe import Recipe
from deltapack.packing.roles import ROLES
from deltapack.patterns import How, check_patterns
from deltapack.sparsify.table import SPARSIFIERS

__all__ = ["check_effects", "check_options"]

_COMPARED = 128


def check_options(recipe: Recipe) -> None:
    """Refuse options that nothing of a recipe reads, whatever the model.

    Raises:
        RecipeError: There is one.
    """
    used = {recipe.dropping["sparsify"], *(override.sparsify for override in recipe.overrides)}
    for row in SPARSIFIERS.values():
        for option in row.options:
            if getattr(recipe, option.name) is not None and row.name not in used:
                found, hint = f"sparsify={recipe.dropping['sparsify']}", f"Leave it out, or use --sparsify {row.name}."
                raise RecipeError(f"{option.name} does nothing", expected=f"sparsify={row.name}", found=found, hint=hint)
    values = {recipe.dropping["values"], *(override.values for override in recipe.overrides)}
    if recipe.fidelity is not None and "auto" not in values:
        hint = "Leave out --fidelity, or let --values be auto."
        raise RecipeError("fidelity does nothing", expected="values=auto", found=f"values={recipe.dropping['values']}", hint=hint)


def check_effects(recipe: Recipe, roles: Mapping[str, str]) -> None:
    """Refuse expressions that match no tensor, and settings that no tensor they match can take.

    Args:
        recipe: What the user asked for.
        roles: Role of each tensor of the fine-tune.

    Raises:
        RecipeError: There is one.
    """
    check_options(recipe)
    exact = recipe.exact if isinstance(recipe.exact, str) else None
    searched: dict[str, str | None] = {"include": recipe.include, "exclude": recipe.exclude, "exact": exact}
    uses: list[tuple[str | None, How]] = [(pattern, "search") for pattern in searched.values()]
    check_patterns([*uses, *((override.pattern, "fullmatch") for override in recipe.overrides)], roles)
    if recipe.fidelity is not None:
        settled = (recipe.for_tensor(name, role) for name, role in roles.items())
        if not any(one.role == "weight" and one.values == "auto" for one in settled):
            raise RecipeError("fidelity does nothing", expected="a weight with values=auto", found="none", hint="Leave out --fidelity.")
    for option, pattern in searched.items():
        if pattern is not None and not any(re.search(pattern, name) for name in roles):
            raise _matches_nothing(option, pattern, roles)
    for override in recipe.overrides:
        matched = [name for name in roles if re.fullmatch(override.pattern, name)]
        if not matched:
            raise _matches_nothing("set", override.pattern, roles)
        _check_override(override, recipe, {name: roles[name] for name in matched})


def _check_override(override: Override, recipe: Recipe, matched: Mapping[str, str]) -> None:
    settled = {name: recipe.for_tensor(name, role).role for name, role in matched.items()}
    for key in settings_of(override):
        if not any(_takes(key, matched[name], role) for name, role in settled.items()):
            name, role = next(iter(settled.items()))
            hint = "Add role=weight to drop from them all the same." if role == "vector" else "Leave the setting out."
            if role != matched[name]:  # made so by --set, not by its name
                hint = f"Leave the setting out, or role={role}, which allows {' and '.join(OF_VECTORS) if role == 'vector' else 'none'}."
            raise RecipeError(
                f"--set '{override.pattern}' sets {key.replace('_', '-')}, which does nothing",
                tensor=name,
                expected="a weight" + (" or a vector" if key in OF_VECTORS else ""),
                found=f"{ROLES[role].name} ({ROLES[role].text})",
                hint=hint,
            )


def _takes(key: str, by_name: str, settled: str) -> bool:
    """Whether a setting means anything for a tensor whose name gives it one role, and the settings another."""
    if key == "role":
        return by_name != "integer" or settled == "exact"
    route = ROLES[settled].route
    return route == "drop" or (route == "difference" and key in OF_VECTORS)


def _matches_nothing(option: str, pattern: str, names: Iterable[str]) -> RecipeError:
    # Likeness takes the product of both lengths, so that few and short ones are compared.
    near = difflib.get_close_matches(re.sub(r"[\\^$.*+?()\[\]{}|]+", ".", pattern)[:_COMPARED], list(names)[:2_000], 2, 0.0)
    how = "whole name" if option == "set" else "name"
    return RecipeError(
        f"--{option} matches no tensor",
        expected=f"an expression that fits the {how} of a tensor of the fine-tune, such as {' or '.join(map(repr, near))}",
        found=f"'{pattern}'",
    )
