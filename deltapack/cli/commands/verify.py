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
@click.option("--model", type=options.checkpoint_path, metavar="MODEL", help="Check, too, that this checkpoint is what the pack restores.")
@options.weights_option
@options.workers_option
@options.output_options
def command(
    pack: Path, base: Path | None, model: Path | None, weight_files: str | None, workers: int | None, quiet: bool, as_json: bool
) -> None:
    """Read all of PACK and check every checksum in it. The exit code says what was found."""
    unit = "chunks" if base is None else "bytes"  # with a base, every tensor is restored in memory
    with show_progress("verifying", quiet=quiet, unit=unit) as progress:
        report = deltapack.verify(pack, base, weight_files=weight_files, workers=workers, progress=progress)
    matched = None if model is None else _matched(pack, model, weight_files, workers, quiet)
    if as_json:
        print_json(report.to_json() | ({} if matched is None else {"model": matched.to_json()}))
    elif not quiet:
        checked = f"{count_of(report.chunks, 'chunk')} and {count_of(report.side_files, 'side file')}"
        fields = [("pack", f"{report.pack}, {human_bytes(report.pack_bytes)}"), ("whole", f"yes: {checked} checked")]
        fields += weight_files_field(report.weight_files)
        if base is not None:
            fields.append(("base fits", f"yes: {count_of(report.base_tensors, 'tensor')} checked"))
        if report.result_digests:
            fields.append(("result", "every restored tensor would match its digest"))
        fields += [("id", report.pack_id), ("content id", report.content_id), ("base", report.base_fingerprint)]
        if matched is not None:
            same = f"{count_of(matched.tensors, 'tensor')} and {count_of(matched.side_files, 'side file')}"
            files = ", weight files byte for byte" if matched.weight_files_match else ""
            fields.append(("model", f"is what the pack restores: {same} compared{files}"))
        print_fields(fields)
        print_notes([*report.notes, *(matched.notes if matched is not None else ())], [])


def _matched(pack: Path, model: Path, weight_files: str | None, workers: int | None, quiet: bool) -> deltapack.ModelReport:
    with show_progress("comparing", quiet=quiet, unit="bytes") as progress:
        return deltapack.verify_model(pack, model, weight_files=weight_files, workers=workers, progress=progress)
