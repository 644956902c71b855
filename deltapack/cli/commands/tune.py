"""`deltapack tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.analysis_tables import tuned_fields, tuned_rows
from deltapack.cli.render import print_fields, print_json, print_notes, print_paragraph, print_table, show_progress
from deltapack.kinds import PACK_FILE

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Find better factors for what a pack dropped, by forward passes.")
@options.base_argument
@click.argument("packs", type=options.pack_path, nargs=-1, metavar="[PACK]...")
@options.out_option(PACK_FILE, "The tuned pack to write; nothing is written unless given.", required=False)
@click.option(
    "--finetuned", type=options.checkpoint_path, metavar="FINETUNED", help="Bring predictions near to those of this fine-tune (KL)."
)
@options.measure_options
@click.option(
    "--groups", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="A factor for each of N groups of layers."
)
@click.option("--factors", is_flag=True, help="Scale low-rank terms as well, from which nothing was dropped.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="R",
    help="Take the smallest of several PACKs that, tuned, keeps this share of FINETUNED's gain. Without a PACK, packs of 0.02 to 1 bits a "
    "weight are made for it.",
)
@options.force_option
@options.workers_option
@options.output_options
def command(
    base: Path,
    packs: tuple[Path, ...],
    out: Path | None,
    finetuned: Path | None,
    groups: int,
    factors: bool,
    keep: float | None,
    force: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure PACK with other factors for what it dropped, and write the best ones into a copy of it.

    Nothing is compressed again: the copy has the same blobs, and digests of what it restores. The objective is
    KL to FINETUNED, or the loss on --text without it, or the number that --eval prints. Tune on another text
    than the one that you evaluate on. With --keep and no pack that keeps enough, the exit code is 1.
    """
    options.check_measure_options(how["score"])
    with show_progress("tuning", quiet=quiet, unit="models" if how["score"] else "tokens") as progress:
        report = deltapack.tune(
            base,
            packs,
            out,
            finetuned=finetuned,
            groups=groups,
            factors=factors,
            keep=keep,
            workers=workers,
            force=force,
            progress=progress,
            **how,
        )
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        header, rows = tuned_rows(report)
        print_table(header, rows)
        print_fields(tuned_fields(report))
    print_notes([], report.warnings)
    if report.chosen is None:
        larger = "give larger ones" if packs else "measure one of `deltapack compress --target-bits 2`"
        print_paragraph("Error", f"no pack keeps {report.keep} of the fine-tune's gain: {larger}")
        click.get_current_context().exit(1)
