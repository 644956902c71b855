"""`deltapack merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import (
    count_of,
    human_bytes,
    print_fields,
    print_json,
    print_notes,
    print_table,
    show_progress,
)

if TYPE_CHECKING:
    from deltapack.merge_recipe import MergeRecipe
    from deltapack.reports import MergeReport

__all__ = ["command"]


@click.command(short_help="Merge packs onto their common base.")
@options.base_argument
@click.argument("packs", type=options.pack_path, nargs=-1)
@options.out_option("The folder to write, or a .safetensors file, or a .dpk for a merged pack.")
@options.merge_options
@options.checkpoint_options
@options.output_options
def command(
    base: Path,
    packs: tuple[Path, ...],
    out: Path,
    recipe_file: Path | None,
    pack_folder: Path | None,
    prefer: Path | None,
    assets: str | None,
    dtype: str | None,
    max_shard_size: str | None,
    no_verify: bool,
    force: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Merge PACKS, all made from BASE, reading the base once.

    Where OUT ends in .dpk the result is a merged pack: applying it to the base gives the same bits as merging
    into a folder.
    """
    asked = _from_file(recipe_file, pack_folder, packs, choices) if recipe_file is not None else _from_options(packs, choices)
    with show_progress("merging", quiet=quiet) as progress:
        report = deltapack.merge(
            base,
            asked.packs,
            out,
            recipe=asked.recipe,
            prefer=prefer,
            assets=_assets(assets, asked),
            dtype=dtype or asked.dtype,
            max_shard_size=max_shard_size,
            verify=not no_verify,
            force=force,
            workers=workers,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
        return
    if not quiet:
        _print(report, asked.recipe.method)
    print_notes([] if quiet else [*asked.notes, *report.notes], report.warnings)


@dataclass(frozen=True)
class _Asked:
    """What the command line or a recipe file asks for."""

    recipe: MergeRecipe
    packs: Sequence[Path]
    dtype: str | None = None
    assets: Path | str | None = None
    notes: Sequence[str] = ()


def _from_options(packs: tuple[Path, ...], choices: dict[str, Any]) -> _Asked:
    from deltapack.merge_arguments import parse_parameter, recipe_from_texts

    if not packs:
        raise click.UsageError("Missing argument 'PACKS...' (or --recipe FILE).")
    parameters = dict(parse_parameter(text) for text in choices["parameters"])
    for name, value in (("lambda", choices["scale"]), ("normalize", choices["normalize"])):
        if value is not None:
            parameters[name] = float(value)
    recipe = recipe_from_texts(
        packs,
        method=choices["method"] or "linear",
        semantics=choices["semantics"],
        weights=choices["weights"],
        densities=choices["densities"],
        parameters=parameters,
    )
    return _Asked(recipe, packs)


def _from_file(path: Path, folder: Path | None, packs: tuple[Path, ...], choices: dict[str, Any]) -> _Asked:
    given = [f"--{name}" for name, value in choices.items() if value not in (None, ())] + (["PACKS"] if packs else [])
    if given:
        names = {"--weights": "--weight", "--densities": "--density", "--parameters": "--param", "--scale": "--lambda"}
        raise click.UsageError(f"--recipe says it all; {', '.join(names.get(name, name) for name in given)} cannot be given, too.")
    found = deltapack.read_merge_file(path, folder)
    return _Asked(found.recipe, found.packs, found.dtype, found.assets, found.notes)


def _assets(text: str | None, asked: _Asked) -> Path | str | None:
    """Return the pack that `--assets` names, or `"base"`."""
    from deltapack.merge_arguments import find_pack

    if text is None:
        return asked.assets
    name = text.removeprefix("from=")
    return name if name == "base" else asked.packs[find_pack("assets", name, asked.packs)]


def _print(report: MergeReport, method: str) -> None:
    amount = f"{count_of(report.tensors, 'tensor')}, {human_bytes(report.tensor_bytes)}"
    print_fields([("merged", str(report.out)), ("method", method), ("tensors", amount)])
    click.echo()
    print_table(("pack", "weight"), [(name, "by tensor" if weight is None else f"{weight:g}") for name, weight in report.weights])
