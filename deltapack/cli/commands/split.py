"""`deltapack split`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import human_bytes, print_fields, print_json
from deltapack.kinds import PACK_FILE

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Write a pack in numbered parts.")
@options.pack_argument
@click.option("--max-part-size", required=True, metavar="SIZE", help="Cut it into parts of at most this size, such as 5GB.")
@options.out_option(PACK_FILE, "The name of the whole, NAME.dpk; beside PACK, and called as it is, unless given.", required=False)
@options.force_option
@options.output_options
def command(pack: Path, max_part_size: str, out: Path | None, force: bool, quiet: bool, as_json: bool) -> None:
    """Write PACK as NAME-00001-of-00004.dpk and so on, and NAME.dpk.index.json, which says which parts there are.

    Every command that takes a pack takes the index, the first part, or NAME.dpk for all of them. To join them again:
    cat NAME-*-of-00004.dpk > NAME.dpk
    """
    report = deltapack.split(pack, out, max_part_size=max_part_size, force=force)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        parts = f"{len(report.parts):,}: {report.parts[0]}" + (f" to {report.parts[-1]}" if len(report.parts) > 1 else "")
        print_fields([("pack", f"{report.pack}, {human_bytes(report.pack_bytes)}"), ("parts", parts), ("index", report.index)])
