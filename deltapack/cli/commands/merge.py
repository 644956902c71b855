"""`deltapack merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.merge_tables import print_explanation, print_merge, print_preview, print_survey
from deltapack.cli.render import print_json, print_notes, show_progress

if TYPE_CHECKING:
    from deltapack.merging.recipe import MergeRecipe
    from deltapack.reports import SurveyReport

__all__ = ["command"]


@click.command(short_help="Merge packs onto their common base.")
@options.base_argument
@click.argument("packs", type=options.pack_path, nargs=-1)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The folder to write, or a .safetensors file, or a .dpk for a merged pack. Required but for --explain.",
)
@options.merge_options
@click.option("--dry-run", is_flag=True, help="Check everything that headers tell, and stop: names, types, disk, memory.")
@click.option("--report", is_flag=True, help="Compare the packs layer by layer: overlap, conflicts of signs, cosine, norms.")
@click.option("--explain", metavar="TENSOR", help="Print the formula with the numbers of a tensor (auto: of the largest), and stop.")
@options.checkpoint_options
@options.output_options
def command(base: Path, packs: tuple[Path, ...], out: Path | None, quiet: bool, as_json: bool, **given: Any) -> None:
    """Merge PACKS, all made from BASE, reading the base once.

    Where OUT ends in .dpk the result is a merged pack: applying it to the base gives the same bits as merging
    into a folder.
    """
    choices = {name: given.pop(name) for name in _CHOICES}
    path, folder = given.pop("recipe_file"), given.pop("pack_folder")
    asked = _from_file(path, folder, packs, choices) if path is not None else _from_options(packs, choices)
    owners = {what: _owner(what, given[what], asked) for what in ("assets", "vocab")}
    call = _Call(base, asked, given | owners, quiet=quiet, as_json=as_json)
    if given["explain"] is not None:
        call.explain(given["explain"])
        return
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")
    if given["dry_run"]:
        call.preview(out)
    else:
        call.merge(out)


_CHOICES = ("method", "weights", "densities", "scale", "normalize", "semantics", "parameters")
"""Options that make the recipe."""


@dataclass(frozen=True)
class _Asked:
    """What the command line or a recipe file asks for."""

    recipe: MergeRecipe
    packs: Sequence[Path]
    dtype: str | None = None
    assets: Path | str | None = None
    vocab: str | None = None
    notes: Sequence[str] = ()


def _from_options(packs: tuple[Path, ...], choices: dict[str, Any]) -> _Asked:
    from deltapack.merging.arguments import parse_parameter, recipe_from_texts

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
    return _Asked(found.recipe, found.packs, found.dtype, found.assets, found.vocab, found.notes)


def _owner(what: str, text: str | None, asked: _Asked) -> Path | str | None:
    """Return the pack that an option names, else what the recipe file says; or `"base"`, and `"union"` of vocabularies."""
    from deltapack.merging.arguments import find_pack

    if text is None:
        return asked.assets if what == "assets" else asked.vocab
    name, words = text.removeprefix("from="), ("base", "union") if what == "vocab" else ("base",)
    return name if name in words else asked.packs[find_pack(what, name, asked.packs, words)]


@dataclass(frozen=True)
class _Call:
    """One run of the command: what is asked for and how it is answered."""

    base: Path
    asked: _Asked
    given: dict[str, Any]
    quiet: bool
    as_json: bool

    def explain(self, tensor: str) -> None:
        """Print the formula with the numbers of a tensor."""
        name = None if tensor == "auto" else tensor
        report = deltapack.explain_merge(self.base, self.asked.packs, name, **self._questions())
        if self.as_json:
            print_json(report.to_json())
        else:
            print_explanation(report)

    def preview(self, out: Path) -> None:
        """Print what would be done."""
        report = deltapack.preview_merge(self.base, self.asked.packs, out, **self._settings())
        survey = None
        if self.given["report"]:
            survey = deltapack.survey_merge(self.base, self.asked.packs, **self._questions())
        if self.as_json:
            print_json(report.to_json() | {"survey": None if survey is None else survey.to_json()})
            return
        if not self.quiet:
            print_preview(report)
        self._finish(survey, report.notes, [*report.warnings, *(survey.warnings if survey is not None else ())])

    def merge(self, out: Path) -> None:
        """Merge and print what was done."""
        with show_progress("merging", quiet=self.quiet) as progress:
            report = deltapack.merge(
                self.base,
                self.asked.packs,
                out,
                verify=not self.given["no_verify"],
                report=self.given["report"],
                device=self.given["device"],
                backend=self.given["backend"],
                progress=progress,
                **self._settings(),
            )
        if self.as_json:
            print_json(report.to_json())
            return
        if not self.quiet:
            print_merge(report, self.asked.recipe.method)
        self._finish(report.survey, report.notes, report.warnings)

    def _settings(self) -> dict[str, Any]:
        """Return the arguments that a merge and its preview share."""
        own = {key: self.given[key] for key in ("assets", "max_shard_size", "force")}
        return self._questions() | own | {"dtype": self.given["dtype"] or self.asked.dtype}

    def _questions(self) -> dict[str, Any]:
        """Return the arguments that all uses of a merge share, also those that write nothing."""
        return {key: self.given[key] for key in ("prefer", "vocab", "workers")} | {"recipe": self.asked.recipe}

    def _finish(self, survey: SurveyReport | None, notes: Sequence[str], warnings: Sequence[str]) -> None:
        if survey is not None and not self.quiet:
            print_survey(survey)
        print_notes([] if self.quiet else [*self.asked.notes, *notes], warnings)
