"""Recipes: of merges in YAML and JSON, of packing as arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import deltapack
from fuzz.bundles import Bundle
from fuzz.mutators.texts import changed_yaml
from fuzz.mutators.values import changed_text
from fuzz.protocol import Finding, Scratch, Target
from fuzz.targets.checkpoints import files_below

__all__ = ["COMPRESS_RECIPE", "MERGE_RECIPE"]

_LINEAR = """\
merge_method: linear
base_model: base
models:
  - model: a.dpk
    parameters:
      weight: 0.5
  - model: b.dpk
    parameters:
      weight: [0, 0.5, 1]
dtype: bfloat16
"""
_TIES = """\
merge_method: ties
models:
  - model: a.dpk
    parameters:
      density: 0.5
      weight:
        - filter: mlp
          value: [0, 1]
        - value: 0.25
  - model: b.dpk
    parameters:
      weight: 1
parameters:
  normalize: true
  lambda: 0.7
"""
_DARE = """\
merge_method: dare_ties
base_model: base
models: [{model: base}, {model: a.dpk, parameters: {weight: 1}}]
out_dtype: float32
"""
_OURS = """\
merge_method: linear
models:
  - model: a.dpk
    parameters: {weight: 1}
  - {model: b.dpk, parameters: {weight: [{value: 1, pattern: '.*w'}, {value: 0}]}}
assets: a.dpk
"""
_SLERP = '{"merge_method": "slerp", "models": [{"model": "a.dpk"}], "parameters": {"t": 0.5}, "slices": []}'
_MERGES = (_LINEAR, _TIES, _DARE, _OURS, _SLERP)


def seeds_merge(folder: Path) -> Sequence[Bundle]:
    """Recipes with two packs beside them."""
    from support.builders import small_model, tuned_model, write_folder

    base = small_model()
    write_folder(folder / "base", base)
    bundle = {f"base/{name}": content for name, content in files_below(folder / "base").items()}
    for number, name in enumerate(("a.dpk", "b.dpk")):
        write_folder(folder / f"{number}", tuned_model(base, 100 + number))
        deltapack.compress(folder / "base", folder / f"{number}", folder / name, recipe=deltapack.Recipe(drop_rate=0.5))
        bundle[name] = (folder / name).read_bytes()
    return [{**bundle, "recipe.yaml": text.encode()} for text in _MERGES]


def change_merge(bundle: Bundle, rng: Random) -> Bundle:
    """Change the recipe."""
    text = bundle["recipe.yaml"]
    new = changed_text(text, rng) if text[:1] in b"{[" else changed_yaml(text, rng)
    return {**bundle, "recipe.yaml": new}


def check_merge(scratch: Scratch) -> None:
    """A recipe is read and done, or refused."""
    base = scratch.inputs / "base"
    done, read = scratch.attempt("read", lambda: deltapack.read_merge_file(scratch.inputs / "recipe.yaml"))
    if not done or not read.packs:
        return
    options = {key: getattr(read, key) for key in ("recipe", "prefer", "assets", "vocab", "dtype") if hasattr(read, key)}
    seen, _ = scratch.attempt("preview", lambda: deltapack.preview_merge(base, read.packs, scratch.folder / "out", **options, workers=1))
    merged, error = scratch.attempt("merge", lambda: deltapack.merge(base, read.packs, scratch.folder / "out", **options, workers=1))
    if not merged and (scratch.folder / "out").exists():
        raise Finding(f"merge failed and left its output: {error}")
    scratch.note(f"preview {seen}, merge {merged}")


MERGE_RECIPE = Target(
    "merge-recipe",
    "recipes of merges in YAML and JSON",
    seeds_merge,
    change_merge,
    check_merge,
    ("deltapack.merging.recipe_files", "deltapack.merging.strict_yaml", "deltapack.merging.recipe"),
    "merge",
    slow=True,
)

_RECIPES: tuple[dict[str, Any], ...] = (
    {"drop_rate": 0.9, "values": "int4", "seed": 3, "group": 128},
    {"drop_rate": 0.5, "values": "bf16", "index": "gaps", "sparsify": "magnitude"},
    {"exact": True},
    {"drop_rate": 0.75, "values": "ternary", "sparsify": "della"},
    {"drop_rate": 0, "values": "auto", "index": "auto"},
)


def seeds_compress(folder: Path) -> Sequence[Bundle]:
    """Arguments of recipes, with a base and a fine-tune."""
    from support.builders import small_model, tuned_model, write_folder

    base = small_model()
    write_folder(folder / "base", base)
    write_folder(folder / "tuned", tuned_model(base))
    known = {field.name for field in fields(deltapack.Recipe)}
    rows = [{key: value for key, value in row.items() if key in known} for row in _RECIPES]
    files = {f"{side}/{name}": content for side in ("base", "tuned") for name, content in files_below(folder / side).items()}
    return [files | {"recipe.json": json.dumps(row).encode()} for row in rows]


def change_compress(bundle: Bundle, rng: Random) -> Bundle:
    """Change arguments."""
    names = tuple(field.name for field in fields(deltapack.Recipe))
    words = (
        *names,
        "int4",
        "ternary",
        "uniform",
        "sign",
        "bf16",
        "gaps",
        "seeded",
        "stratified",
        "bitmap",
        "all",
        "auto",
        "dare",
        "magnitude",
        "della",
    )
    return {**bundle, "recipe.json": changed_text(bundle["recipe.json"], rng, words)}


def check_compress(scratch: Scratch) -> None:
    """Arguments are refused, or make a pack that is verified and applied."""
    try:
        row = json.loads((scratch.inputs / "recipe.json").read_bytes())
    except (ValueError, RecursionError):
        return
    known = {field.name for field in fields(deltapack.Recipe)}
    if not isinstance(row, dict):
        return
    arguments = {key: value for key, value in row.items() if key in known and key != "overrides"}
    base, tuned, pack = scratch.inputs / "base", scratch.inputs / "tuned", scratch.folder / "a.dpk"
    done, recipe = scratch.attempt("recipe", lambda: deltapack.Recipe(**arguments))
    if not done:
        return
    done, _ = scratch.attempt("compress", lambda: deltapack.compress(base, tuned, pack, recipe=recipe, workers=1))
    if done:
        deltapack.verify(pack, base, workers=1)
        deltapack.apply(base, pack, scratch.folder / "out", workers=1)
    elif pack.exists():
        raise Finding("compress failed and left its output")


COMPRESS_RECIPE = Target(
    "compress-recipe",
    "arguments of recipes",
    seeds_compress,
    change_compress,
    check_compress,
    ("deltapack.packing.recipe", "deltapack.packing.planning", "deltapack.sparsify"),
    "compress",
    slow=True,
)
