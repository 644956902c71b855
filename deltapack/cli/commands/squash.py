"""`deltapack squash`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.engines import engine_options
from deltapack.cli.render import count_of, human_bytes, print_fields, print_json, print_notes, show_progress
from deltapack.kinds import PACK_FILE

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Make one pack of a chain of packs.")
@options.packs_argument
@options.out_option(PACK_FILE, "The pack to write.")
@click.option(
    "--base", type=options.checkpoint_path, metavar="BASE", help="Code anew what the chain restores from BASE; packs may be lossy."
)
@options.weights_option
@options.force_option
@options.workers_option
@engine_options
@options.output_options
def command(
    packs: tuple[Path, ...],
    out: Path,
    base: Path | None,
    weight_files: str | None,
    force: bool,
    workers: int | None,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make one pack of a chain of PACKs: applied to the base, it gives what they give one after the other, bit for bit.

    Without --base, the steps of exact packs are put behind one another as they are.
    """
    with show_progress("squashing", quiet=quiet) as progress:
        report = deltapack.squash(
            packs,
            out,
            base=base,
            weight_files=weight_files,
            force=force,
            workers=workers,
            engine=engine,
            address=address,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        how = "coded anew, over the base" if report.coded_anew else "steps put behind one another"
        print_fields(
            [
                ("pack", str(report.pack)),
                ("size", f"{human_bytes(report.pack_bytes)} ({report.pack_bytes:,} bytes), {how}"),
                ("stands for", f"{count_of(len(report.links), 'pack')} of {human_bytes(report.links_bytes)}"),
            ]
        )
        print_notes(report.notes)
