"""`deltapack evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.analysis_tables import evaluate_rows
from deltapack.cli.render import print_json, print_notes, print_table, show_progress

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Measure what packs keep of a fine-tune.")
@options.base_argument
@options.finetuned_argument
@options.packs_argument
@options.measure_options
@options.html_option
@options.force_option
@options.workers_option
@options.output_options
def command(
    base: Path,
    finetuned: Path,
    packs: tuple[Path, ...],
    html: Path | None,
    force: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure BASE, FINETUNED and what each PACK makes of BASE.

    With --text, language models of transformers read a text that none of them was trained on: held-out loss,
    KL to the fine-tune and agreement with it (of the next token), and retention, the share of the fine-tune's
    gain over the base that is kept. Packs are applied in memory. With --eval a program of yours gets each
    model as a checkpoint: --eval 'python my.py {model}'.
    """
    options.check_measure_options(how["score"])
    with show_progress("measuring", quiet=quiet, unit="models" if how["score"] else "tokens") as progress:
        report = deltapack.evaluate(base, finetuned, packs, html=html, force=force, workers=workers, progress=progress, **how)
    if as_json:
        print_json(report.to_json())
        return
    if not quiet:
        header, rows = evaluate_rows(report)
        print_table(header, rows)
    print_notes([f"the page is {html}"] if html is not None and not quiet else [], report.warnings)
