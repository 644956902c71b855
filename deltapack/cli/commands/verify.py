"""`deltapack verify`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import count_of, human_bytes, print_fields, print_json, print_notes, show_progress, weight_files_field

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Check a pack for damage, and whether a base fits it.")
@options.pack_argument
@click.option("--base", type=options.checkpoint_path, metavar="BASE", help="Check, too, that this is the base of the pack.")
@options.weights_option
@options.workers_option
@options.output_options
def command(pack: Path, base: Path | None, weight_files: str | None, workers: int | None, quiet: bool, as_json: bool) -> None:
    """Read all of PACK and check every checksum in it. The exit code says what was found."""
    unit = "chunks" if base is None else "bytes"  # with a base, every tensor is restored in memory
    with show_progress("verifying", quiet=quiet, unit=unit) as progress:
        report = deltapack.verify(pack, base, weight_files=weight_files, workers=workers, progress=progress)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        checked = f"{count_of(report.chunks, 'chunk')} and {count_of(report.side_files, 'side file')}"
        fields = [("pack", f"{report.pack}, {human_bytes(report.pack_bytes)}"), ("whole", f"yes: {checked} checked")]
        fields += weight_files_field(report.weight_files)
        if base is not None:
            fields.append(("base", f"fits: {count_of(report.base_tensors, 'tensor')} checked"))
        if report.result_digests:
            fields.append(("result", "every restored tensor would match its digest"))
        print_fields(fields)
        print_notes(report.notes, [])
