"""What the two checkpoints say before any tensor is packed: roles, kinship, what was removed. Refuses what would go wrong in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deltapack.checkpoint import Checkpoint, NameMatch, config_of
from deltapack.composing.restored import RestoredCheckpoint
from deltapack.errors import RecipeError
from deltapack.packing.configs import compare_configs
from deltapack.packing.effects import check_effects
from deltapack.packing.kinship import (
    Kinship,
    check_codes,
    check_export,
    check_placeholders,
    doubt_exact,
    measure_kinship,
    refuse_unrelated,
    shortened,
)
from deltapack.packing.recipe import Recipe
from deltapack.packing.roles import ROLES, roles_of
from deltapack.packing.wanted import missing_by_config
from deltapack.patterns import check_patterns

__all__ = ["Survey", "survey_inputs"]


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        roles: Role of each tensor of the fine-tune, by its name alone; `exact` where nothing of the base is left in it.
        settled: Its role as the recipe has it.
        kept: Tensors that only the base has and that the result keeps.
        warnings: Sentences that a person should read.
        notes: What was noticed.
    """

    roles: Mapping[str, str]
    settled: Mapping[str, str]
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def survey_inputs(
    base: Checkpoint, finetuned: Checkpoint, match: NameMatch, recipe: Recipe, *, allow_unrelated: bool, keep_base: str | None
) -> Survey:
    """Look at headers, at the config, and at a few thousand elements of each large weight.

    Raises:
        BaseMismatchError: The fine-tune is not one of that base.
        CheckpointError: A tensor is a placeholder without elements.
        RecipeError: A setting would do nothing.
        UnsupportedError: Quantised codes would be paired with weights, or the fine-tune is a quantised export.
    """
    roles = {**roles_of(finetuned.tensors), **dict.fromkeys(match.unlike, "exact")}
    check_effects(recipe, roles)
    kept = _kept(keep_base, match, finetuned)
    check_placeholders(base, finetuned, match)
    settled = {name: recipe.for_tensor(name, role).role for name, role in roles.items()}
    exact = {name for name, role in settled.items() if role == "exact"}
    check_codes(base, finetuned, match, (roles_of(base.tensors), roles), exact)
    if not allow_unrelated:
        check_export(base, finetuned, match, settled)
    config = config_of(finetuned)
    warnings = compare_configs(config_of(base), config)
    if recipe.exact is True:
        # What a chain restores is not sampled: that takes its decoding, for each step of a training.
        sampled = not allow_unrelated and not isinstance(base.files, RestoredCheckpoint)
        kinship = measure_kinship(base, finetuned, match, roles if sampled else settled, kept)
        warnings += _of_exact(kinship, base, finetuned, allowed=allow_unrelated)
    else:
        kinship = measure_kinship(base, finetuned, match, settled, kept)
        warnings += _of_lossy(kinship, base, finetuned, allowed=allow_unrelated)
    if recipe.include is not None and not any(ROLES[role].route == "drop" for role in settled.values()):
        warnings.append("nothing is dropped, and all that changed is kept whole: --include leaves no weights (matrices of floats).")
    notes = []
    removed = [name for name in match.only_base if name not in kept]
    if removed:
        notes.append(f"removed, as the fine-tune lacks them: {shortened(removed)}")
    if kept:
        notes.append(f"kept from the base, though the fine-tune lacks them: {shortened(kept)}")
    for setting, lost in missing_by_config(config, removed, [*finetuned.tensors, *match.base_of.values()]).items():
        warnings.append(
            f"the fine-tune lacks {shortened(lost)}, which its config.json still asks for ({setting}): a program that loads the result "
            "may make them up. --keep-base REGEX keeps the base's."
        )
    return Survey(roles, settled, kept, tuple(warnings), tuple(notes))


def _of_exact(kinship: Kinship, base: Checkpoint, finetuned: Checkpoint, *, allowed: bool) -> list[str]:
    """Return warnings about what does not belong together where nothing is lost. Raises as `refuse_unrelated`."""
    unchanged = replace(kinship, changed=(), changed_share=0.0)
    return [*refuse_unrelated(unchanged, base, finetuned, allowed=allowed), *doubt_exact(kinship, base)]


def _of_lossy(kinship: Kinship, base: Checkpoint, finetuned: Checkpoint, *, allowed: bool) -> list[str]:
    """Return warnings about what does not belong together where a share of differences is dropped. Raises as `refuse_unrelated`."""
    warnings = refuse_unrelated(kinship, base, finetuned, allowed=allowed)
    if kinship.changed and not any("differ from their partner" in warning for warning in warnings):
        warnings.append(
            f"{shortened(kinship.changed)}: as different from the base's as if made anew, so what is dropped is no small difference; "
            "--exclude or --set 'REGEX:role=exact' keeps such tensors bit for bit."
        )
    return warnings


def _kept(pattern: str | None, match: NameMatch, finetuned: Checkpoint) -> tuple[str, ...]:
    """Return the names that only the base has and that an expression finds.

    Raises:
        RecipeError: The expression is wrong, takes too long, or finds none.
    """
    if pattern is None:
        return ()
    check_patterns([(pattern, "search")], match.only_base)
    taken = {*finetuned.tensors, *finetuned.aliases}
    found = tuple(name for name in match.only_base if re.search(pattern, name) and name not in taken)
    if not found:
        said = shortened(match.only_base) or "none"
        raise RecipeError("--keep-base matches no tensor", expected=f"one that only the base has: {said}", found=f"'{pattern}'")
    return found
