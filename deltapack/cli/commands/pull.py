"""`deltapack pull`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import count_of, escaped, human_bytes, print_fields, print_json, print_notes

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Fetch a pack from the Hugging Face Hub.")
@click.argument("repo", metavar="ORG/NAME[@REVISION]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The folder to write, or a file for the pack alone if it ends in .dpk; a folder of the repository's name unless given.",
)
@click.option("--pack", metavar="NAME", help="The pack to fetch, where the repository has several.")
@options.workers_option
@options.output_options
def command(repo: str, out: Path | None, pack: str | None, workers: int | None, quiet: bool, as_json: bool) -> None:
    """Fetch the pack of the repository ORG/NAME with the small files beside it, check it, and say how to restore it.

    Every file is compared with the digest that the Hub lists, and the pack with all of its own.
    """
    report = deltapack.pull(repo, out, pack=pack, quiet=quiet or as_json or not sys.stderr.isatty(), workers=workers)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        _print(report)


def _print(report: deltapack.PullReport) -> None:
    at = f" at {report.base_revision}" if report.base_revision else ""
    fields = [
        ("repository", f"{report.repo} at {report.commit}"),
        ("pack", f"{report.pack}, checked"),
        ("size", f"{human_bytes(sum(report.files.values()))} in {count_of(len(report.files), 'file')}"),
    ]
    print_fields([*fields, *([("base", f"{report.base}{at}")] if report.base else [])])
    print_notes(report.notes)
    base = "BASE" if report.base is None else report.base + (f"@{report.base_revision}" if report.base_revision else "")
    click.echo(f"\nNext: deltapack apply {escaped(shlex.quote(base))} {escaped(shlex.quote(str(report.pack)))} -o restored/")
