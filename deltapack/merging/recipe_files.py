"""Merge recipes in YAML: mergekit's own files, as they are, where each of their models has a pack."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltapack.adapters import is_adapter
from deltapack.checking import as_pack, as_path
from deltapack.dtypes import BY_NAME
from deltapack.errors import RecipeError
from deltapack.format.reader import PackReader
from deltapack.merging.methods.table import MergeMethod, find_method
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant
from deltapack.merging.strict_yaml import Node, read_yaml
from deltapack.sources.remote_path import is_file
from deltapack.sources.urls import is_url
from deltapack.sparsify.table import SPARSIFIERS

__all__ = ["MergeFile", "read_merge_file"]

_OURS = ("semantics", "prefer", "assets", "vocab")
_TOP = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer", *_OURS)
_SLICES = "layers are copied from whole models; packs can be merged with `models`"
_REFUSED_TOP = {
    "slices": _SLICES,
    "modules": _SLICES,
    "chat_template": "it comes with the tokenizer files of the pack that tokenizer_source names",
}
_REFUSED_TOKENIZER = {
    "tokens": "a new token has the row of the pack that added it, or the mean of such rows",
    "pad_to_multiple_of": "the result has a row for each token and no more",
}
_DTYPES = {dtype.torch: dtype.name for dtype in BY_NAME.values() if dtype.is_delta}
_PARAMETERS = ("weight", "density", "lambda", "normalize", "int8_mask", "rescale", "gamma", "epsilon", "select_topk", "r", "alpha")
_PER_MODEL = ("weight", "density", "gamma", "epsilon")


@dataclass(frozen=True)
class MergeFile:
    """What a recipe file asks for.

    Attributes:
        recipe: The recipe, with one weight per pack where the file gives any.
        packs: The packs, in the order of the file.
        dtype: Type of the result, such as `"bf16"`; `None`: the tensors' own.
        assets: The pack that tokenizer and config are from, or `"base"`, if the file says so.
        vocab: The pack whose new rows the result has, or `"base"`, or `"union"` for the new tokens of all packs, if the file says so.
        notes: What was read and has no effect.
        prefer: The pack that decides on what cannot be added, if the file says so.
    """

    recipe: MergeRecipe
    packs: tuple[Path, ...]
    dtype: str | None
    assets: Path | str | None
    vocab: Path | str | None
    notes: tuple[str, ...]
    prefer: Path | None = None


def read_merge_file(path: str | Path, packs: str | Path | None = None) -> MergeFile:
    """Read a merge recipe: mergekit's YAML, or the same with paths of packs as models.

    Args:
        path: The file.
        packs: Folder of the packs: `org/math-7b` is its `math-7b.dpk`, and a path that ends in `.dpk` is looked for there, then beside the
            recipe. The recipe's own folder unless given.

    Raises:
        RecipeError: The file is not a recipe, uses what packs cannot do, or a pack is missing; it names file and key.
    """
    path = as_path("the recipe", path)
    top = read_yaml(path).mapping(_TOP, _REFUSED_TOP)
    for key in ("merge_method", "models"):
        if key not in top:
            raise RecipeError(f"{key} is missing", path=path)
    method = _method(top)
    base = _model_name(top["base_model"]) if "base_model" in top else None
    shared = top["parameters"].mapping(_PARAMETERS) if "parameters" in top else {}
    folder = as_path("the folder of packs", packs) if packs is not None else path.parent
    models: dict[str, Path] = {}
    own: list[dict[str, Node]] = []
    for item in top["models"].items():
        entry = item.mapping(("model", "parameters"))
        if "model" not in entry:
            raise item.error("has no model")
        name = _model_name(entry["model"])
        if name == base:
            continue  # mergekit's files list the base, too
        if name in models:
            raise entry["model"].error("is there twice")
        models[name] = _pack_of(entry["model"], name, path.parent, folder)
        own.append(entry["parameters"].mapping(_PER_MODEL) if "parameters" in entry else {})
    if not models:
        raise top["models"].error("names no model but the base")
    reader = _Reader(method, shared, own, tuple(models.values()))
    try:
        recipe = reader.recipe(top.get("semantics"))
    except RecipeError as error:  # of numbers and patterns that no recipe may have
        error.path = error.path or path
        raise
    owners = _owners(top, base, models)
    prefer = _owner(top["prefer"], None, models, ()) if "prefer" in top else None
    chosen = None if prefer is None else as_path("prefer", prefer)
    return MergeFile(recipe, tuple(models.values()), _dtype(top), *owners, tuple(reader.notes()), chosen)


@dataclass(frozen=True)
class _Reader:
    """The parameters of a file: those that all models share, and each model's own."""

    method: MergeMethod
    shared: Mapping[str, Node]
    own: list[dict[str, Node]]
    packs: tuple[Path, ...]

    def recipe(self, semantics: Node | None) -> MergeRecipe:
        """Return the recipe."""
        self._check_sparsifiers()
        weights = self._schedules("weight") if self.method.weighted else ()
        if not self.method.weighted:
            self._refuse("weight")
        densities = self._schedules("density") if self.method.trim is not None else ()
        options = {}
        for name in self.method.defaults:
            node = self.shared.get(name)
            if name in ("gamma", "epsilon"):
                self._refuse(name, where=self.own)
            if node is not None:
                options[name] = float(node.flag()) if name == "normalize" else node.number()
        for name, node in self.shared.items():
            if name not in (*self.method.parameters, "density", "gamma", "epsilon", "int8_mask", "rescale"):
                raise node.error(f"{self.method.name} has no such parameter", expected="one of " + ", ".join(self.method.parameters))
        return MergeRecipe(self.method.name, weights, semantics.text() if semantics else None, densities, options)

    def notes(self) -> list[str]:
        """Return what has no effect here, in words."""
        out = ["int8_mask has no effect: it only saves mergekit memory"] if "int8_mask" in self.shared else []
        overruled = [name for name in _PER_MODEL if name in self.shared and all(name in own for own in self.own)]
        return out + [f"{self.shared[name].key} has no effect: each model has its own" for name in overruled]

    def _schedules(self, name: str) -> tuple[Schedule, ...]:
        """Return a schedule for each pack; a model's own setting stands before the shared one."""
        nodes = [own.get(name, self.shared.get(name)) for own in self.own]
        if not any(nodes):
            return ()
        return tuple(constant(1) if node is None else _schedule(node) for node in nodes)

    def _refuse(self, name: str, where: list[dict[str, Node]] | None = None) -> None:
        for nodes in [*([self.shared] if where is None else []), *self.own]:
            if name in nodes:
                raise nodes[name].error(f"{self.method.name} has no {name} for a model")

    def _check_sparsifiers(self) -> None:
        """Check what mergekit would do to whole models and packs have behind them: it must be what was done."""
        rescale, made_by = self.shared.get("rescale"), self.method.made_by
        if rescale is not None and not rescale.flag() and made_by is not None and SPARSIFIERS[made_by].rescale != "none":
            raise rescale.error("packs are rescaled when they are compressed", hint="Use packs that were made with --rescale 1.")
        for number, own in enumerate(self.own):
            for name in ("density", "gamma", "epsilon"):
                node = own.get(name, self.shared.get(name))
                if node is None or name in self.method.parameters:
                    continue
                if self.method.made_by is None:
                    raise node.error(f"{self.method.name} has no such parameter", expected="one of " + ", ".join(self.method.parameters))
                _check_made_with(node, name, self.packs[number])


def _check_made_with(node: Node, name: str, pack: Path) -> None:
    if pack.is_dir():
        raise node.error(f"{pack} is an adapter, which dropped nothing", hint="Delete the key.")
    with PackReader(pack) as reader:
        stated = reader.index.recipe
    key = "drop_rate" if name == "density" else name
    try:
        value = float(stated[key])
    except (KeyError, TypeError, ValueError):
        raise node.error(f"{pack} does not say what {name} it was made with", hint="Delete the key.") from None
    made = 1 - value if name == "density" else value
    if abs(made - node.number()) > 1e-6:
        hint = f"Compress again with --{key.replace('_', '-')}, or delete the key to take the pack as it is."
        raise node.error(f"{pack} was made with another {name}", expected=f"{made:g}", hint=hint)


def _schedule(node: Node) -> Schedule:
    """Return the schedule of a number, a gradient, or a list of filters; of filters the first that fits wins."""
    if isinstance(node.value, dict):
        return Schedule((_rule(node),))
    if not isinstance(node.value, list):
        return Schedule((Rule((node.number(),)),))
    if any(isinstance(item, dict) for item in node.value):
        rules = [_rule(item) for item in node.items()]
        for place, item in enumerate(node.items()):
            if any(earlier.pattern in (None, rules[place].pattern) for earlier in rules[:place]):
                raise item.error("has no effect: one before it applies to all of its tensors", hint="The first that fits wins.")
        return Schedule(tuple(reversed(rules)))
    return Schedule((Rule(_gradient(node)),))


def _rule(node: Node) -> Rule:
    entry = node.mapping(("value", "filter", "pattern"))
    if "value" not in entry:
        raise node.error("has no value")
    values = _gradient(entry["value"]) if isinstance(entry["value"].value, list) else (entry["value"].number(),)
    if "pattern" in entry and "filter" in entry:
        raise node.error("has a filter and a pattern", hint="A filter is part of a tensor's name, a pattern an expression for all of it.")
    if "pattern" in entry:
        return Rule(values, entry["pattern"].text())
    wanted = entry["filter"].text() if "filter" in entry and entry["filter"].value is not None else "*"
    return Rule(values, None if wanted == "*" else f"(?s:.*){re.escape(wanted)}(?s:.*)")


def _gradient(node: Node) -> tuple[float, ...]:
    values = tuple(item.number() for item in node.items())
    if not values:
        raise node.error("is empty", expected="at least one number")
    return values


def _method(top: Mapping[str, Node]) -> MergeMethod:
    node = top["merge_method"]
    try:
        return find_method(node.text(), top["semantics"].text() if "semantics" in top else None)
    except RecipeError as error:
        error.path = node.path
        raise


def _model_name(node: Node) -> str:
    name = node.text()
    if "+" in name and not name.endswith(".dpk"):
        raise node.error("adapters (`model+adapter`) have no pack", hint="Name the folder of the adapter alone, if the model is the base.")
    if not name:
        raise node.error("is empty")
    return name


def _pack_of(node: Node, name: str, beside: Path, folder: Path) -> Path:
    """Return the pack of a model: a path in the folder of packs or beside the recipe, or the file of its last name there; or an adapter."""
    if is_url(name):
        return as_pack(node.key, name)
    if name.endswith(".dpk") or is_file(folder / name):
        found = next((place / name for place in (folder, beside) if is_file(place / name)), folder / name)
    else:
        found = folder / (re.split(r"[/\\]", name.partition("@")[0].rstrip("/\\"))[-1] + ".dpk")
    if not is_file(found):
        adapter = next(filter(is_adapter, (folder / name, beside / name, found.with_suffix(""))), None)
        if adapter is not None:
            return adapter
        hint = "Say with --packs where the packs are; org/name is name.dpk there."
        raise RecipeError(f"{node.key}: this model has no pack", path=node.path, expected=str(found), found="no such file", hint=hint)
    return found


def _tokenizer_source(top: Mapping[str, Node]) -> Node | None:
    """Return what says whose tokens the result has: `tokenizer_source`, or the `source` of a `tokenizer`."""
    if "tokenizer" not in top:
        return top.get("tokenizer_source")
    if "tokenizer_source" in top:
        raise top["tokenizer"].error("is there beside tokenizer_source")
    entry = top["tokenizer"].mapping(("source",), _REFUSED_TOKENIZER)
    if "source" not in entry:
        raise top["tokenizer"].error("has no source")
    return entry["source"]


def _owners(top: Mapping[str, Node], base: str | None, models: Mapping[str, Path]) -> tuple[Path | str | None, Path | str | None]:
    """Return whose side files and whose vocabulary the result has: of a tokenizer both, or each by a key of ours."""
    source = _tokenizer_source(top)
    union = source is not None and source.value == "union"
    for key, said in (("assets", source if not union else None), ("vocab", source if union else None)):
        if key in top and said is not None:
            raise top[key].error(f"is there beside {said.key}")
    assets, vocab = top.get("assets", None if union else source), top.get("vocab", source if union else None)
    return (
        None if assets is None else _owner(assets, base, models, ("base",) if assets is not source else ("union", "base")),
        None if vocab is None else _owner(vocab, base, models, ("union", "base")),
    )


def _owner(node: Node, base: str | None, models: Mapping[str, Path], words: tuple[str, ...]) -> Path | str:
    """Return the pack of the model that a value names, or the word that it may be instead."""
    wanted = node.text()
    if wanted in words:
        return wanted
    if wanted in models:
        return models[wanted]
    if wanted == base and "base" in words:
        return "base"
    raise node.error("it is not one of the models", expected=", ".join([*words, "or one of the models"]) if words else "one of the models")


def _dtype(top: Mapping[str, Node]) -> str | None:
    node = top.get("out_dtype") or top.get("dtype")
    if node is None or node.value is None:
        return None
    if node.text() not in _DTYPES:
        raise node.error("is not a type of floats", expected="one of " + ", ".join(_DTYPES))
    return _DTYPES[node.text()]
