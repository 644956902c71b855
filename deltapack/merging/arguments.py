"""From what a person types after `deltapack merge`, or passes to `deltapack.merge`, to a merge recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deltapack.checking import as_number
from deltapack.errors import RecipeError, did_you_mean
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant

__all__ = ["Numbers", "find_pack", "parse_parameter", "parse_schedules", "recipe_from_texts", "recipe_of"]

Numbers = float | Sequence[float] | Mapping[str, float]
"""A number for each pack, one for all, or by the names of packs."""

_NUMBERS = re.compile(r"[-+.\deE]+(,[-+.\deE]+)*")
_EVERY = "*"


def recipe_of(
    packs: Sequence[Path],
    weights: Numbers | None,
    method: str,
    semantics: str | None,
    density: Numbers | None,
    parameters: Mapping[str, float] | None,
) -> MergeRecipe:
    """Return the recipe that these plain arguments mean, as `merge` takes them.

    Raises:
        RecipeError: One is no number, or out of range, or names no pack.
    """
    schedules = _constants("weights", weights, packs), _constants("density", density, packs)
    return MergeRecipe(method, schedules[0], semantics, schedules[1], {} if parameters is None else parameters)


def _constants(what: str, given: Numbers | None, packs: Sequence[Path]) -> tuple[Schedule, ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        named: dict[int, float] = {}
        for name, value in given.items():
            number = find_pack(what, str(name), packs)
            if number in named:
                raise RecipeError(f"{what} name one pack twice", found=name)
            named[number] = as_number(what, value)
        return tuple(constant(named[number]) if number in named else Schedule(()) for number in range(len(packs)))
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return tuple(constant(as_number(what, value)) for value in given)
    return (constant(as_number(what, given)),)


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
    plain, named = [text for text in texts if "=" not in text], [text for text in texts if "=" in text]
    if len(plain) not in (0, 1, len(packs)):
        raise RecipeError(f"the number of {what}s is wrong", expected=f"1 or {len(packs)}", found=len(plain))
    if len(plain) == 1 and len(packs) > 1:
        _refuse_list(what, plain[0], packs)
    rules: list[list[tuple[str, Rule]]] = [[] for _ in packs]
    for number, own in enumerate(rules):
        own += [(text, Rule(_numbers(what, text))) for text in (plain if len(plain) < 2 else plain[number : number + 1])]
    for text in named:
        target, _, value = text.rpartition("=")
        pattern, chosen = _target(what, target, packs)
        for number in chosen:
            rules[number].append((text, Rule(_numbers(what, value), pattern)))
    _refuse_overruled(what, [*plain, *named], rules)
    return tuple(Schedule(tuple(rule for _, rule in own)) for own in rules)


def _refuse_list(what: str, text: str, packs: Sequence[Path]) -> None:
    """Refuse `0.6,0.4` for two packs: a number for each of them, or from the first layer to the last?

    Raises:
        RecipeError: There are as many numbers as packs.
    """
    numbers = text.split(",")
    if len(numbers) == len(packs):
        each = " ".join(f"--{what} {number}" for number in numbers)
        hint = f"One for each pack is {each}; from the first layer to the last, for all packs, is --{what} '*={text}'."
        raise RecipeError(f"a {what} for each pack, or from the first layer to the last?", found=text, hint=hint)


def _refuse_overruled(what: str, texts: Sequence[str], rules: Sequence[Sequence[tuple[str, Rule]]]) -> None:
    """Refuse what later texts overrule for every pack and tensor.

    Raises:
        RecipeError: There is such a text.
    """
    used = set()
    for own in rules:
        for place, (text, rule) in enumerate(own):
            if not any(later.pattern in (None, rule.pattern) for _, later in own[place + 1 :]):
                used.add(text)
    for text in texts:
        if text not in used:
            hint = "Of several that fit, the last one holds."
            raise RecipeError(f"--{what} {text} has no effect: what comes after it overrules it", hint=hint)


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
    if not found:
        known = [*words, *dict.fromkeys(path.name for path in packs)]
        hint = did_you_mean(name, [*known, *(path.stem for path in packs)])
        raise RecipeError(f"{what} names no pack", expected=f"one of {', '.join(known)}", found=name, hint=hint)
    paths = list(dict.fromkeys(str(packs[number]) for number in found))
    if len(paths) == len(found):
        raise RecipeError(f"{what} names several packs", expected=f"one of {', '.join(paths)}", found=name, hint="Give the whole path.")
    numbers = what in ("weight", "density")
    apart = "one number for each pack, in their order" if numbers else "a copy of it under another name"
    raise RecipeError(f"{what} names a pack that is given {len(found)} times", found=name, hint=f"To tell them apart, give {apart}.")


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
