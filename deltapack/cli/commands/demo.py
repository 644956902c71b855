"""`deltapack demo`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from deltapack.cli import options
from deltapack.cli.render import escaped, print_json, show_progress
from deltapack.cli.types import OutPath
from deltapack.kinds import FOLDER

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Train a small model and two fine-tunes, then pack, restore and merge them.")
@click.option(
    "-o",
    "--out",
    type=OutPath(FOLDER),
    default=Path("deltapack-demo"),
    show_default="./deltapack-demo",
    metavar="OUT",
    help="The folder to fill.",
)
@click.option("--force", is_flag=True, help="Replace an earlier demo in that folder, if it is as the demo left it.")
@options.workers_option
@options.output_options
def command(out: Path, force: bool, workers: int | None, quiet: bool, as_json: bool) -> None:
    """Show on a small language model what packs keep.

    Trains a model and two fine-tunes of it on text that Python and its packages bring along, in about a minute
    and without a network, packs them as `compress` does by itself and at several drop rates, restores and merges
    them, and measures all. Leaves the files in OUT to go on with, when all is done.
    """
    from deltapack.demo.flow import run_demo

    def echo(line: str) -> None:
        # Not click.echo: it would keep the stream that the progress bar replaces for a while.
        print(escaped(line), file=sys.stderr, flush=True)

    with show_progress("training", quiet=quiet, unit="steps") as progress:
        report = run_demo(out, echo=None if quiet else echo, progress=progress, workers=workers, force=force)
    if as_json:
        print_json(asdict(report))
    elif not quiet:
        from rich.console import Console

        from deltapack.demo.render import print_report

        print_report(report, Console())
