"""`deltapack analyze`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.analysis_tables import analysis_fields, budget_table, layer_table, role_table, tensor_table
from deltapack.cli.render import print_fields, print_json, print_notes, print_table, show_progress

__all__ = ["command"]

DROPPED = ("kappa", "rank", "spikes", "equal", "elements", "max |delta|", "what becomes of it")
"""Columns that a narrow terminal does without, first to last."""


@click.command(cls=options.Command, short_help="Look at a difference before it is packed: what it costs at which size.")
@options.base_argument
@options.finetuned_argument
@options.html_option
@options.map_option
@options.base_packs_option
@options.weights_option
@click.option("--allow-unrelated", is_flag=True, help="Go on where most of FINETUNED has nothing to do with BASE.")
@click.option("--tensors", is_flag=True, help="Show every tensor, too.")
@options.force_option
@options.workers_option
@options.output_options
def command(
    base: Path,
    finetuned: Path,
    html: Path | None,
    name_map: list[tuple[str, str]],
    base_packs: tuple[Path, ...],
    weight_files: str | None,
    allow_unrelated: bool,
    tensors: bool,
    force: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show what FINETUNED changed, by layer, and what a pack of it is expected to cost and keep.

    Sizes of differences, how many are equal, in how many directions they lie, which of them stand out; bytes
    and retention of budgets, and how risky dropping at random is. No model runs, so what is expected is an
    estimate: `deltapack evaluate` measures.
    """
    with show_progress("analysing", quiet=quiet) as progress:
        report = deltapack.analyze(
            base,
            finetuned,
            html=html,
            force=force,
            name_map=name_map,
            allow_unrelated=allow_unrelated,
            weight_files=weight_files,
            base_packs=base_packs,
            workers=workers,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
        return
    if not quiet:
        print_fields(analysis_fields(report))
        by_tensor = [(tensor_table(report), 1)] if tensors else []
        for table, left in ((role_table(report), 2), (layer_table(report), 1), *by_tensor, (budget_table(report), 1)):
            if table[1]:
                click.echo("")
                print_table(*table, left=left, drop=[title for title in DROPPED if title in table[0]])
        click.echo(f"\n{report.recommendation}")
    notes = [*report.notes, *([f"the page is {html}"] if html is not None else [])]
    print_notes([] if quiet else notes, report.warnings)
