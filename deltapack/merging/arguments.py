"""From what a person types after `deltapack merge` to a merge recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltapack.errors import RecipeError, did_you_mean
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule

__all__ = ["find_pack", "parse_parameter", "parse_schedules", "recipe_from_texts"]

_NUMBERS = re.compile(r"[-+.\deE]+(,[-+.\deE]+)*")
_EVERY = "*"


def recipe_from_texts(
    packs: Sequence[Path],
    *,
    method: str,
    semantics: str | None,
    weights: Sequence[str],
    densities: Sequence[str],
    parameters: Mapping[str, float],
) -> MergeRecipe:
    """Return the recipe that the texts of the command line mean.

    Args:
        packs: The packs, in order.
        method: Name of a merge method.
        semantics: Whose formula.
        weights: Texts as `parse_schedules` takes them.
        densities: Likewise.
        parameters: The method's own.

    Raises:
        RecipeError: A text cannot be read, or the method does not know a parameter.
    """
    given, thinned = parse_schedules("weight", weights, packs), parse_schedules("density", densities, packs)
    return MergeRecipe(method, given, semantics, thinned, parameters)


def parse_schedules(what: str, texts: Sequence[str], packs: Sequence[Path]) -> tuple[Schedule, ...]:
    """Read numbers for packs; later ones win where several apply.

    `0.5` (once for all packs, or once for each in their order), `PACK=0.5`, `REGEX:PACK=0.3` for tensors whose whole name matches; `*` is
    every pack, and `0.2,0.8` goes from the first layer's number to the last one's. A pack is named by its path, file name or file name
    without `.dpk`.

    Raises:
        RecipeError: A text is not of this form.
    """
    if not texts:
        return ()
    plain = [text for text in texts if "=" not in text]
    if len(plain) not in (0, 1, len(packs)):
        raise RecipeError(f"the number of {what}s is wrong", expected=f"1 or {len(packs)}", found=len(plain))
    rules: list[list[Rule]] = [[] for _ in packs]
    for number, own in enumerate(rules):
        if plain:
            own.append(Rule(_numbers(what, plain[number if len(plain) > 1 else 0])))
    for text in texts:
        if "=" in text:
            target, _, value = text.rpartition("=")
            pattern, chosen = _target(what, target, packs)
            for number in chosen:
                rules[number].append(Rule(_numbers(what, value), pattern))
    return tuple(Schedule(tuple(own)) for own in rules)


def _target(what: str, text: str, packs: Sequence[Path]) -> tuple[str | None, Sequence[int]]:
    """Return the pattern of tensor names, if any, and the numbers of the packs."""
    name, pattern = text, None
    if ":" in text and not _named(text, packs):
        pattern, _, name = text.rpartition(":")
    if name == _EVERY:
        return pattern, range(len(packs))
    return pattern, [find_pack(what, name, packs)]


def find_pack(what: str, name: str, packs: Sequence[Path], words: Sequence[str] = ()) -> int:
    """Return the number of the pack that a person calls `name`; `words` would have been understood, too.

    Raises:
        RecipeError: None or several are called so.
    """
    found = _named(name, packs)
    if len(found) == 1:
        return found[0]
    problem = "names no pack" if not found else "names several packs"
    known = ", ".join([*words, *(path.name for path in packs)])
    near = did_you_mean(name, [*words, *(path.name for path in packs), *(path.stem for path in packs)]) if not found else None
    hint = near or "Give the whole path."
    raise RecipeError(f"{what} {problem}", expected=f"one of {known}", found=name, hint=hint)


def _named(name: str, packs: Sequence[Path]) -> list[int]:
    exact = [number for number, path in enumerate(packs) if str(path) == name or _is_file(name, path)]
    return exact or [number for number, path in enumerate(packs) if name in (path.name, path.stem)]


def _is_file(name: str, path: Path) -> bool:
    """Whether a name is another way to write the path of a pack."""
    try:
        return ("/" in name or os.sep in name) and path.samefile(name)
    except (OSError, ValueError):
        return False


def _numbers(what: str, text: str) -> tuple[float, ...]:
    try:
        if not _NUMBERS.fullmatch(text.strip()):
            raise ValueError
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        expected = "0.5, PACK=0.5, REGEX:PACK=0.5, or 0.2,0.8 from the first layer to the last"
        raise RecipeError(f"cannot read a {what}", expected=expected, found=text) from error


def parse_parameter(text: str) -> tuple[str, float]:
    """Read `select_topk=0.5`.

    Raises:
        RecipeError: The text is not of this form.
    """
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name.strip().replace("-", "_"), float(value)
    except ValueError as error:
        raise RecipeError("cannot read a parameter", expected="NAME=NUMBER", found=text) from error
