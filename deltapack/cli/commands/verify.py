"""`deltapack verify`."""

from __future__ import annotations

from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import count_of, human_bytes, print_fields, print_json, print_notes, show_progress, weight_files_field
from deltapack.reports import VerifyReport

__all__ = ["command"]

_PROVED = {
    "index": "index: the prologue and the index keep every rule; no data was read",
    "pack": "pack: every byte is what was written, every chunk decodes",
    "applies": "applies: `apply` with this base gives what the pack promises, every tensor and file",
}


@click.command(cls=options.Command, short_help="Check a pack for damage, and whether a base fits it.")
@options.packs_argument
@click.option("--base", type=options.checkpoint_path, metavar="BASE", help="Do all that apply does with BASE, but write nothing.")
@click.option("--model", type=options.checkpoint_path, metavar="MODEL", help="Check, too, that this checkpoint is what the pack restores.")
@click.option("--quick", is_flag=True, help="Look at the index alone, whatever the size of the pack.")
@options.weights_option
@options.workers_option
@options.output_options
def command(
    packs: tuple[Path, ...],
    base: Path | None,
    model: Path | None,
    quick: bool,
    weight_files: str | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Read all of PACK and check every checksum in it; of several packs, that they are a chain, too.

    \b
    What is proved is told as the level that was reached:
      --quick       index    the index keeps every rule
      (as it is)    pack     every byte is what was written, every chunk decodes
      --base BASE   applies  apply with BASE would give what the pack promises

    The exit code says what was found: 0 nothing wrong, 3 damaged, 4 another base, 5 no pack or a newer one, 6 over a limit.
    """  # noqa: D301
    unit = "chunks" if base is None else "bytes"  # with a base, every tensor is restored in memory
    with show_progress("verifying", quiet=quiet, unit=unit) as progress:
        report = deltapack.verify(
            packs[0] if len(packs) == 1 else packs, base, quick=quick, weight_files=weight_files, workers=workers, progress=progress
        )
    matched = None if model is None else _matched(report.pack, model, weight_files, workers, quiet)
    if as_json:
        print_json(report.to_json() | ({} if matched is None else {"model": matched.to_json()}))
    elif not quiet:
        print_fields(_fields(report, matched))
        print_notes([*report.notes, *(matched.notes if matched is not None else ())])
    if not as_json and matched is not None:
        print_notes([], matched.warnings)


def _fields(report: VerifyReport, matched: deltapack.ModelReport | None) -> list[tuple[str, str]]:
    """Return what was found, for people."""
    name = "pack" if report.packs == 1 else "packs"
    many = "" if report.packs == 1 else f"{report.packs}, a chain up to "
    fields = [(name, f"{many}{report.pack}, {human_bytes(report.pack_bytes)}"), ("level", _PROVED[report.level])]
    if report.level != "index":
        checked = f"{count_of(report.chunks, 'chunk')} and {count_of(report.side_files, 'side file')}"
        fields += [("whole", f"yes: {checked} checked"), *weight_files_field(report.weight_files)]
    if report.level == "applies":
        fields.append(("base fits", f"yes: {count_of(report.base_tensors, 'tensor')} checked"))
    if report.result_digests:
        fields.append(("result", "every restored tensor would match its digest"))
    fields += [("id", report.pack_id), ("content id", report.content_id), ("base", report.base_fingerprint)]
    if matched is not None:
        same = f"{count_of(matched.tensors, 'tensor')} and {count_of(matched.side_files, 'side file')}"
        files = ", weight files byte for byte" if matched.weight_files_match else ""
        fields.append(("model", f"is what the pack restores: {same} compared{files}"))
    return fields


def _matched(pack: Path, model: Path, weight_files: str | None, workers: int | None, quiet: bool) -> deltapack.ModelReport:
    with show_progress("comparing", quiet=quiet, unit="bytes") as progress:
        return deltapack.verify_model(pack, model, weight_files=weight_files, workers=workers, progress=progress)
