"""The model card of a merge: what it is made of, so that others can see it and make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltapack._version import __version__
from deltapack.composing.vocabulary import Vocabulary
from deltapack.dtypes import DType
from deltapack.merging.planning import MergePlan
from deltapack.merging.recipe import MergeRecipe, Schedule

__all__ = ["card_of", "recipe_yaml"]

CARD = "README.md"


def card_of(plan: MergePlan, dtype: DType | None = None) -> Mapping[str, bytes]:
    """Return the card as a side file, by its name; nothing where the result has no side files.

    It names base and packs by their file names only, so it does not depend on where they are.

    Args:
        plan: The merge.
        dtype: The type that the result is cast to, if it is.
    """
    assets = plan.composition.assets
    has_files = plan.base.is_folder if assets is None else assets.index.files is not None
    return {CARD: _card(plan, dtype).encode()} if has_files else {}


def recipe_yaml(base: str, packs: list[str], recipe: MergeRecipe, *, union: bool = False, dtype: DType | None = None) -> str:
    """Return a recipe as `read_merge_file` reads it; `union`: whether it unites vocabularies; `dtype`: what it casts to."""
    models: list[dict[str, Any]] = []
    for number, pack in enumerate(packs):
        own = {}
        for name, schedules in (("weight", recipe.weights), ("density", recipe.densities)):
            if schedules:
                own[name] = _setting(schedules[number])
        models.append({"model": pack} | ({"parameters": own} if own else {}))
    document: dict[str, Any] = {"merge_method": recipe.method, "base_model": base, "models": models}
    if recipe.parameters:
        document["parameters"] = {
            name: bool(value) if name == "normalize" else float(value) for name, value in sorted(recipe.parameters.items())
        }
    if recipe.semantics is not None:
        document["semantics"] = recipe.semantics
    if dtype is not None:
        document["dtype"] = dtype.torch
    if union:
        document["tokenizer_source"] = "union"
    return _dump(document)


def _dump(document: Any) -> str:
    """Return YAML in which every text is on one line, so that no name can end the front matter or the block it is in."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Escapes what is not printable."""

    def represent(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    Dumper.add_representer(str, represent)
    return str(yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=float("inf")))


def _setting(schedule: Schedule) -> Any:
    """Return a schedule as mergekit's YAML has it: of several the first that fits wins."""
    if len(schedule.rules) == 1 and schedule.rules[0].pattern is None:
        return _value(schedule.rules[0].values)
    return [
        ({} if rule.pattern is None else {"pattern": rule.pattern}) | {"value": _value(rule.values)} for rule in reversed(schedule.rules)
    ]


def _value(values: tuple[float, ...]) -> float | list[float]:
    return float(values[0]) if len(values) == 1 else list(map(float, values))


def _card(plan: MergePlan, dtype: DType | None) -> str:
    method, recipe = plan.recipe.formula, plan.recipe
    base, packs = plan.base.path.resolve().name, [path.name for path in plan.paths]
    fingerprint = plan.packs[0].reader.index.base_fingerprint[:16]
    assets = plan.composition.assets
    donor = "the base" if assets is None else f"`{_plain(assets.path.name)}`"
    union = isinstance(plan.vocab, Vocabulary)
    united = ", with the new tokens of all packs; a token of several has the mean of their rows" if union else ""
    semantics = f" as in {recipe.semantics}" if recipe.semantics else ""
    options = ", ".join(f"{name} {value:g}" for name, value in sorted(recipe.options.items()))
    return f"""---
{_front_matter([base, *(path.stem for path in plan.paths)])}---

# Merge of {_listed([f"`{_plain(path.stem)}`" for path in plan.paths])}

Made by deltapack {__version__} over the base `{_plain(base)}` (fingerprint `{fingerprint}`).
Config, tokenizer and chat template are from {donor}{united}.

Method `{method.name}`{semantics}: `{method.text}`{f" ({options})" if options else ""}.
All sums are f32, in the order of the packs, and rounded once.

| pack | made with | id |
|---|---|---|
{_table(plan)}

The recipe, for `deltapack merge BASE --recipe FILE --packs DIR`:

```yaml
{recipe_yaml(base, packs, recipe, union=union, dtype=dtype)}```
"""


def _front_matter(models: list[str]) -> str:
    front = {
        "base_model": models,
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "deltapack"],
    }
    return _dump(front)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _table(plan: MergePlan) -> str:
    rows = []
    for pack in plan.packs:
        name, stated = _plain(pack.reader.path.name), _made(pack.reader.index.recipe)
        rows.append(f"| `{name}` | {stated} | `{pack.reader.pack_id[:16]}` |")
    return "\n".join(rows)


def _made(recipe: Mapping[str, Any]) -> str:
    """Return how a pack was made, in words."""
    method = _plain(str(recipe.get("method", "")))
    if "packs" in recipe:
        return f"merge by {method}"
    rate = recipe.get("drop_rate")
    return f"{method}, drop rate {_plain(str(rate))}" if rate is not None else method


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: packs may come from anyone."""
    return "".join(char if char.isprintable() and char not in "`|<>[]" else "?" for char in text)
