"""`deltapack export`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import human_bytes, print_fields, print_json, print_notes
from deltapack.cli.types import Choice
from deltapack.kinds import FOLDER

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Write a pack in a form that another tool loads.")
@options.pack_argument
@click.option("--to", type=Choice(["transformers"]), required=True, help="Who shall load it.")
@click.option("--base", required=True, metavar="BASE", help="The base: ORG/NAME or ORG/NAME@REVISION on the Hugging Face Hub, or a folder.")
@options.out_option(FOLDER, "The folder to write.")
@options.output_options
def command(pack: Path, to: str, base: str, out: Path, quiet: bool, as_json: bool) -> None:
    """Write a folder that transformers loads: config.json, tokenizer, and PACK in place of weights.

    config.json names the base, by repository and commit or by its path. Loading needs
    `import deltapack.integrations.transformers` in the program; docs/transformers.md tells more.
    """
    report = deltapack.write_model_folder(pack, base, out)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        at = "" if report.revision is None else f" at {report.revision}"
        print_fields(
            [
                ("folder", f"{report.out}, for {to}"),
                ("size", f"{human_bytes(report.bytes)} ({report.bytes:,} bytes), {report.pack.name} in place of weights"),
                ("base", f"{report.base}{at}"),
            ]
        )
        print_notes(report.notes)
