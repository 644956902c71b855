"""The model card of a merge: what it is made of, so that others can see it and make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltapack._version import __version__
from deltapack.composing.vocabulary import Vocabulary
from deltapack.dtypes import DType
from deltapack.merging.basecard import CARD, HubName, base_front_matter, name_of_base
from deltapack.merging.cardtext import dump_yaml, plain
from deltapack.merging.planning import MergePlan
from deltapack.merging.recipe import MergeRecipe, Schedule

__all__ = ["Owners", "card_of", "recipe_yaml"]


@dataclass(frozen=True)
class Owners:
    """Who decides on what cannot be added, by the names of a recipe; see `deltapack.merging.request.MergeChoices`."""

    prefer: str | None = None
    assets: str | None = None
    vocab: str | None = None


def card_of(plan: MergePlan, dtype: DType | None = None, *, in_pack: bool = False) -> Mapping[str, bytes]:
    """Return the card as a side file, by its name; nothing for a merged pack that leaves all side files to the base.

    It names base and packs by their file names only (or by what the hub calls the base), so it does not depend on where they are.

    Args:
        plan: The merge.
        dtype: The type that the result is cast to, if it is.
        in_pack: Whether the result is a merged pack.
    """
    assets = plan.composition.assets
    has_files = plan.base.is_folder if assets is None else assets.index.files is not None
    return {CARD: _card(plan, dtype).encode()} if has_files or not in_pack else {}


def recipe_yaml(base: str, packs: Sequence[str], recipe: MergeRecipe, *, owners: Owners = Owners(), dtype: DType | None = None) -> str:
    """Return a recipe as `read_merge_file` reads it; `owners`: who decides on what is not added; `dtype`: what it casts to."""
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
    if owners.vocab == "union":
        document["tokenizer_source"] = "union"  # as mergekit says it
    said = {"prefer": owners.prefer, "assets": owners.assets, "vocab": owners.vocab if owners.vocab != "union" else None}
    return dump_yaml(document | {key: value for key, value in said.items() if value is not None})


def _setting(schedule: Schedule) -> Any:
    """Return a schedule as mergekit's YAML has it: of several the first that fits wins."""
    if schedule.single is not None:
        return float(schedule.single)
    if len(schedule.rules) == 1 and schedule.rules[0].pattern is None:
        return _value(schedule.rules[0].values)
    return [
        ({} if rule.pattern is None else {"pattern": rule.pattern}) | {"value": _value(rule.values)} for rule in reversed(schedule.rules)
    ]


def _value(values: tuple[float, ...]) -> float | list[float]:
    return float(values[0]) if len(values) == 1 else list(map(float, values))


def _card(plan: MergePlan, dtype: DType | None) -> str:
    method, recipe = plan.recipe.formula, plan.recipe
    base, packs = name_of_base(plan.base.path), _names(plan)
    stems = [name.removesuffix(".dpk") for name in packs]
    fingerprint = plan.packs[0].reader.index.base_fingerprint[:16]
    semantics = f" as in {recipe.semantics}" if recipe.semantics else ""
    options = ", ".join(f"{name} {value:g}" for name, value in sorted(recipe.options.items()))
    return f"""---
{dump_yaml(_front_matter(plan, base, stems))}---

# Merge of {_listed([f"`{plain(stem)}`" for stem in stems])}

Made by deltapack {__version__} over the base {_base(base)} (fingerprint `{fingerprint}`).
{_files(plan, packs)}
Method `{method.name}`{semantics}: `{method.text}`{f" ({options})" if options else ""}.
All sums are f32, in the order of the packs, and rounded once.

| pack | made with | id |
|---|---|---|
{_table(plan, packs)}

The recipe, for `deltapack merge BASE --recipe FILE --packs DIR`:

```yaml
{recipe_yaml(base.name, packs, recipe, owners=_owners(plan, packs), dtype=dtype)}```
"""


def _names(plan: MergePlan) -> list[str]:
    """Return the packs' file names, with a number where they are taken: a recipe tells its models apart by their names."""
    taken = {name_of_base(plan.base.path).name, "base", "union"}
    out = []
    for path in plan.paths:
        stem, suffix = (path.stem, path.suffix) if path.suffix == ".dpk" else (path.name, "")
        name, number = path.name, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        taken.add(name)
        out.append(name)
    return out


def _owners(plan: MergePlan, packs: Sequence[str]) -> Owners:
    def name(chosen: object) -> str | None:
        return packs[chosen] if isinstance(chosen, int) else "base" if chosen == "base" else None

    vocab = "union" if isinstance(plan.vocab, Vocabulary) else name(plan.vocab)
    return Owners(name(plan.prefer), name(plan.donor), vocab)


def _base(base: HubName) -> str:
    return f"`{plain(base.name)}`" + (f", revision `{plain(base.revision)}`" if base.revision else "")


def _files(plan: MergePlan, packs: Sequence[str]) -> str:
    """Return the line on the other side files, if there are any."""
    assets = plan.composition.assets
    if not _side_files(plan):
        return ""
    place = next((number for number, pack in enumerate(plan.packs) if pack.reader is assets), None)
    donor = "the base" if place is None else f"`{plain(packs[place])}`"
    united = (
        ", with the new tokens of all packs; a token of several has the mean of their rows" if isinstance(plan.vocab, Vocabulary) else ""
    )
    return f"Config, tokenizer and chat template are from {donor}{united}.\n"


def _side_files(plan: MergePlan) -> set[str]:
    """Return the names of the side files of the result, but for the card."""
    assets = plan.composition.assets
    files = plan.base.side_files() if assets is None or assets.index.files is None else assets.index.files
    return {file.name for file in files} - {CARD}


def _front_matter(plan: MergePlan, base: HubName, stems: Sequence[str]) -> dict[str, Any]:
    """Return what the hub reads: the models, what is still true of the base's own card, tags."""
    kept = base_front_matter(plan.base)
    library = {"library_name": "transformers"} if "config.json" in _side_files(plan) else {}
    return {
        "base_model": list(dict.fromkeys([base.name, *stems])),
        "base_model_relation": "merge",
        **library,
        **kept,
        "tags": ["merge", "deltapack"],
    }


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _table(plan: MergePlan, names: Sequence[str]) -> str:
    rows = []
    for pack, name in zip(plan.packs, names, strict=True):
        rows.append(f"| `{plain(name)}` | {_made(pack.reader.index.recipe)} | `{pack.reader.pack_id[:16]}` |")
    return "\n".join(rows)


def _made(recipe: Mapping[str, Any]) -> str:
    """Return how a pack was made, in words."""
    method = plain(str(recipe.get("method", "")))
    if "packs" in recipe:
        return f"merge by {method}"
    rate = recipe.get("drop_rate")
    return f"{method}, drop rate {plain(str(rate))}" if rate is not None else method
