"""`deltapack merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import deltapack
from deltapack.checking import as_path
from deltapack.cli import options
from deltapack.cli.engines import engine_options, refuse_engine
from deltapack.cli.merge_tables import print_explanation, print_merge, print_preview, print_survey
from deltapack.cli.render import print_json, print_notes, show_progress
from deltapack.cli.types import PackOrAdapter
from deltapack.kinds import EITHER

if TYPE_CHECKING:
    from deltapack.merging.recipe import MergeRecipe
    from deltapack.reports import SurveyReport

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Merge packs onto their common base.")
@options.base_argument
@click.argument("packs", type=PackOrAdapter(), nargs=-1)
@options.out_option(
    EITHER,
    "The folder to write, or a .safetensors file, or a .dpk for a merged pack. Required but for --report and --explain.",
    required=False,
)
@options.merge_options
@click.option("--dry-run", is_flag=True, help="Check everything that headers tell, and stop: names, types, disk, memory.")
@click.option("--report", is_flag=True, help="Compare the packs layer by layer: overlap, conflicts of signs, cosine, norms.")
@click.option("--explain", metavar="TENSOR", help="Print the formula with the numbers of a tensor (auto: of the largest), and stop.")
@options.weights_option
@options.checkpoint_options
@engine_options
@options.output_options
def command(base: Path, packs: tuple[Path, ...], out: Path | None, quiet: bool, as_json: bool, **given: Any) -> None:
    """Merge PACKS, all made from BASE, reading the base once. The folder of a PEFT adapter of BASE counts as a pack.

    Where OUT ends in .dpk the result is a merged pack: applying it to the base gives the same bits as merging
    into a folder.
    """
    typed = _Typed(**given)
    if out is None and not typed.report and typed.explain is None:
        raise click.UsageError("Missing option '-o' / '--out' (only --report and --explain can do without).")
    _refuse_what_has_no_effect(typed)
    asked = _from_options(packs, typed) if typed.recipe_file is None else _from_file(typed.recipe_file, packs, typed)
    prefer = _owner("prefer", typed.prefer, asked, ())
    asked = replace(
        asked,
        dtype=typed.dtype or asked.dtype,
        assets=_owner("assets", typed.assets, asked, ("base",)) or asked.assets,
        vocab=_owner("vocab", typed.vocab, asked, ("base", "union")) or asked.vocab,
        prefer=asked.prefer if prefer is None else as_path("prefer", prefer),
    )
    call = _Call(base, asked, typed, quiet=quiet, as_json=as_json)
    if typed.explain is not None:
        call.explain(typed.explain)
        return
    if out is None:
        call.compare()
    elif typed.dry_run:
        call.preview(out)
    else:
        call.merge(out)


@dataclass(frozen=True)
class _Typed:
    """What a person types besides arguments and output: first the recipe, or where it is, then who decides, then how it is done."""

    method: str | None
    weights: tuple[str, ...]
    densities: tuple[str, ...]
    scale: float | None
    normalize: bool | None
    semantics: str | None
    parameters: tuple[str, ...]
    recipe_file: Path | None
    pack_folder: Path | None
    prefer: str | None
    assets: str | None
    vocab: str | None
    dry_run: bool
    report: bool
    explain: str | None
    weight_files: str | None
    dtype: str | None
    max_shard_size: str | None
    no_verify: bool
    force: bool
    resume: bool
    workers: int | None
    device: str | None
    backend: str
    engine: str
    address: str | None


_NOT_EXPLAINED = ("out", "dry_run", "report", "assets", "dtype", "max_shard_size", "no_verify", "force", "resume", "device", "backend")
"""Parameters of the command that an explanation has no use for."""


def _refuse_what_has_no_effect(typed: _Typed) -> None:
    """Refuse options that nothing would come of beside the others.

    Raises:
        click.UsageError: There is one; it is named.
    """
    if typed.explain is not None or typed.dry_run:
        refuse_engine("--explain" if typed.explain is not None else "--dry-run")
    useless = options.typed_options(_NOT_EXPLAINED) if typed.explain is not None else []
    if useless:
        raise click.UsageError(f"--explain prints a formula with its numbers and stops; {', '.join(useless)} would have no effect.")
    if typed.pack_folder is not None and typed.recipe_file is None:
        raise click.UsageError("--packs says where the packs of a recipe are; there is no --recipe.")


@dataclass(frozen=True)
class _Asked:
    """What the command line or a recipe file asks for."""

    recipe: MergeRecipe
    packs: Sequence[Path]
    dtype: str | None = None
    assets: Path | str | None = None
    vocab: Path | str | None = None
    notes: Sequence[str] = ()
    prefer: Path | None = None


def _from_options(packs: tuple[Path, ...], typed: _Typed) -> _Asked:
    from deltapack.merging.arguments import parse_parameter, recipe_from_texts

    if not packs:
        raise click.UsageError("Missing argument 'PACKS...' (or --recipe FILE).")
    pairs = [parse_parameter(text) for text in typed.parameters]
    pairs += [(name, float(value)) for name, value in (("lambda", typed.scale), ("normalize", typed.normalize)) if value is not None]
    parameters = dict(pairs)
    for name in parameters:
        if sum(name == other for other, _ in pairs) > 1:
            raise click.UsageError(f"The parameter {name} has one value and is given twice.")
    recipe = recipe_from_texts(
        packs,
        method=typed.method or "linear",
        semantics=typed.semantics,
        weights=typed.weights,
        densities=typed.densities,
        parameters=parameters,
    )
    return _Asked(recipe, packs)


def _from_file(path: Path, packs: tuple[Path, ...], typed: _Typed) -> _Asked:
    said = {
        "--method": typed.method,
        "--weight": typed.weights,
        "--density": typed.densities,
        "--lambda": typed.scale,
        "--normalize": typed.normalize,
        "--semantics": typed.semantics,
        "--param": typed.parameters,
        "PACKS": packs,
    }
    given = [name for name, value in said.items() if value not in (None, ())]
    if given:
        raise click.UsageError(f"--recipe says it all; {', '.join(given)} cannot be given, too.")
    found = deltapack.read_merge_file(path, typed.pack_folder)
    return _Asked(found.recipe, found.packs, found.dtype, found.assets, found.vocab, found.notes, found.prefer)


def _owner(what: str, text: str | None, asked: _Asked, words: Sequence[str]) -> Path | str | None:
    """Return the pack that an option names, or one of the words that it may say instead."""
    from deltapack.merging.arguments import find_pack

    if text is None:
        return None
    name = text.removeprefix("from=")
    if as_path(what, name) in asked.packs:
        return as_path(what, name)
    return name if name in words else asked.packs[find_pack(what, name, asked.packs, words)]


@dataclass(frozen=True)
class _Call:
    """One run of the command: what is asked for and how it is answered."""

    base: Path
    asked: _Asked
    typed: _Typed
    quiet: bool
    as_json: bool

    def explain(self, tensor: str) -> None:
        """Print the formula with the numbers of a tensor."""
        name = None if tensor == "auto" else tensor
        asked, typed = self.asked, self.typed
        report = deltapack.explain_merge(
            self.base,
            asked.packs,
            name,
            recipe=asked.recipe,
            prefer=asked.prefer,
            vocab=asked.vocab,
            weight_files=typed.weight_files,
            workers=typed.workers,
        )
        if self.as_json:
            print_json(report.to_json())
        elif not self.quiet:
            print_explanation(report)

    def preview(self, out: Path) -> None:
        """Print what would be done."""
        asked, typed = self.asked, self.typed
        report = deltapack.preview_merge(
            self.base,
            asked.packs,
            out,
            recipe=asked.recipe,
            prefer=asked.prefer,
            assets=asked.assets,
            vocab=asked.vocab,
            weight_files=typed.weight_files,
            dtype=asked.dtype,
            max_shard_size=typed.max_shard_size,
            force=typed.force,
            workers=typed.workers,
            device=typed.device,
            backend=typed.backend,
        )
        survey = self._survey() if typed.report else None
        if self.as_json:
            print_json(report.to_json() | {"survey": None if survey is None else survey.to_json()})
            return
        if not self.quiet:
            print_preview(report, weighted=asked.recipe.formula.weighted)
        self._finish(survey, report.notes, [*report.warnings, *(survey.warnings if survey is not None else ())])

    def compare(self) -> None:
        """Print how the packs relate."""
        survey = self._survey()
        if self.as_json:
            print_json(survey.to_json())
        else:
            self._finish(survey, [], survey.warnings)

    def _survey(self) -> SurveyReport:
        asked, typed = self.asked, self.typed
        return deltapack.survey_merge(
            self.base,
            asked.packs,
            recipe=asked.recipe,
            prefer=asked.prefer,
            vocab=asked.vocab,
            weight_files=typed.weight_files,
            workers=typed.workers,
        )

    def merge(self, out: Path) -> None:
        """Merge and print what was done."""
        asked, typed = self.asked, self.typed
        with show_progress("merging", quiet=self.quiet) as progress:
            report = deltapack.merge(
                self.base,
                asked.packs,
                out,
                recipe=asked.recipe,
                prefer=asked.prefer,
                assets=asked.assets,
                vocab=asked.vocab,
                weight_files=typed.weight_files,
                dtype=asked.dtype,
                max_shard_size=typed.max_shard_size,
                verify=not typed.no_verify,
                force=typed.force,
                workers=typed.workers,
                device=typed.device,
                backend=typed.backend,
                engine=typed.engine,
                address=typed.address,
                progress=progress,
                report=typed.report,
                resume=typed.resume,
            )
        if self.as_json:
            print_json(report.to_json())
            return
        if not self.quiet:
            print_merge(report, self.asked.recipe.method, weighted=self.asked.recipe.formula.weighted)
        self._finish(report.survey, report.notes, report.warnings)

    def _finish(self, survey: SurveyReport | None, notes: Sequence[str], warnings: Sequence[str]) -> None:
        if survey is not None and not self.quiet:
            print_survey(survey)
        print_notes([] if self.quiet else [*self.asked.notes, *notes], warnings)
