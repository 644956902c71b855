"""Which tensor of the base belongs to which tensor of the fine-tune, where names differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltapack.checkpoint.keys import fits
from deltapack.checkpoint.renames import match_renamed
from deltapack.checkpoint.tensors import TensorInfo
from deltapack.errors import RecipeError
from deltapack.patterns import LONGEST, check_patterns

__all__ = ["NameMatch", "match_names"]


@dataclass(frozen=True)
class NameMatch:
    """How the names of two checkpoints correspond.

    Attributes:
        base_of: From the name in the fine-tune to the name in the base, where both exist.
        only_finetuned: Names that only the fine-tune has, sorted.
        only_base: Names that only the base has, sorted.
        notes: What was matched otherwise than by equal names, for the user.
        unlike: Names in the fine-tune whose layout others of their kind tell, while their values have nothing of the base's.
    """

    base_of: Mapping[str, str]
    only_finetuned: tuple[str, ...]
    only_base: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()


def match_names(
    base: Mapping[str, TensorInfo],
    finetuned: Mapping[str, TensorInfo],
    maps: Sequence[tuple[str, str]] = (),
    *,
    base_aliases: Mapping[str, str] | None = None,
    finetuned_aliases: Mapping[str, str] | None = None,
    models: Sequence[str] = (),
) -> NameMatch:
    """Match the tensors of a fine-tune with those of its base.

    In this order, each for the names still unmatched: the user's maps; equal names; the second names of tied tensors;
    renamings that are certain (`renames`): wrappers of a training tool, runs of a name that one side has more or calls
    otherwise, and what transformers renames.

    Args:
        base: Tensors of the base.
        finetuned: Tensors of the fine-tune.
        maps: (expression, replacement) pairs; the first whose expression matches a whole name of the fine-tune
            gives the name in the base.
        base_aliases: Second names of tied tensors of the base.
        finetuned_aliases: Second names of tied tensors of the fine-tune.
        models: What the configs call the model, for the renamings that transformers knows (`model_names`).

    Raises:
        RecipeError: An expression is not valid, takes too long or matches nothing, or two tensors are mapped to one.
    """
    notes: list[str] = []
    wanted = _apply_maps(base, finetuned, maps)
    base_of: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in finetuned:
        target = wanted.get(name, name)
        if target in owners:
            raise RecipeError(
                f"two tensors of the fine-tune are mapped to the base's {target!r}",
                found=f"{owners[target]!r} and {name!r}",
            )
        if target in base:
            base_of[name] = target
            owners[target] = name
    if wanted:
        notes.append(f"{sum(name in base_of for name in wanted)} names were matched by --map")
    unmatched = {name: info for name, info in finetuned.items() if name not in base_of and name not in wanted}
    left = {name: info for name, info in base.items() if name not in owners}
    for name, target in _tied(unmatched, left, base_aliases or {}, finetuned_aliases or {}):
        base_of[name] = target
        notes.append(f"{name!r} was matched with the base's {target!r}, to which it is tied")
    renamed = match_renamed(base, finetuned, base_of, models, skipped=wanted)
    base_of |= renamed.base_of
    matched = set(base_of.values())
    return NameMatch(
        base_of=dict(sorted(base_of.items())),
        only_finetuned=tuple(sorted(name for name in finetuned if name not in base_of)),
        only_base=tuple(sorted(name for name in base if name not in matched)),
        notes=(*notes, *renamed.notes),
    )


def _apply_maps(base: Mapping[str, TensorInfo], finetuned: Mapping[str, TensorInfo], maps: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the base name that a map gives for each name that one matches."""
    wanted: dict[str, str] = {}
    check_patterns([(pattern, "fullmatch") for pattern, _ in maps], finetuned)
    for pattern, replacement in maps:
        if len(replacement) > LONGEST:
            what, found = "a replacement is too long", f"{len(replacement):,}"
            raise RecipeError(what, expected=f"at most {LONGEST:,} characters", found=found)
        try:
            # A name of the base is no longer than this, and a replacement that names groups often makes very long ones.
            mapped = {name: match.expand(replacement)[:LONGEST] for name in finetuned if (match := re.fullmatch(pattern, name))}
        except (re.error, LookupError) as error:
            raise RecipeError(f"not a valid replacement: {error}", found=f"'{replacement}'") from error
        if not any(target in base for target in mapped.values()):
            example = next(iter(mapped.items()), None)
            raise RecipeError(
                f"the map '{pattern}' matches nothing",
                found="no name of the fine-tune" if example is None else f"{example[0]!r} -> {example[1]!r}, not in the base",
            )
        wanted = {**mapped, **wanted}
    return wanted


def _tied(
    free: Mapping[str, TensorInfo],
    left: Mapping[str, TensorInfo],
    base_aliases: Mapping[str, str],
    finetuned_aliases: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Match tied tensors of which the two sides kept different names."""
    pairs: dict[str, str] = {}
    candidates = [(name, base_aliases.get(name)) for name in free]
    candidates += [(owner, alias) for alias, owner in sorted(finetuned_aliases.items())]
    candidates += [(owner, base_aliases.get(alias)) for alias, owner in sorted(finetuned_aliases.items())]
    for name, target in candidates:
        fresh = name in free and target in left and name not in pairs and target not in pairs.values()
        if target is not None and fresh and fits(free[name], left[target]):
            pairs[name] = target
    return list(pairs.items())
