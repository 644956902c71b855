"""`deltapack merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.render import (
    count_of,
    human_bytes,
    print_fields,
    print_json,
    print_notes,
    print_table,
    show_progress,
)

__all__ = ["command"]


@click.command(short_help="Merge packs onto their common base.")
@options.base_argument
@click.argument("packs", type=options.pack_path, nargs=-1, required=True)
@options.out_option("The folder to write, or a .safetensors file, or a .dpk for a merged pack.")
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    metavar="W",
    help="Weight of a pack: once for each, in their order, or once for all; 1 unless given.",
)
@click.option("--method", default="linear", show_default=True, help="How to merge; linear is task arithmetic.")
@click.option(
    "--prefer",
    type=options.pack_path,
    metavar="PACK",
    help="The pack that decides on tensors that cannot be added, such as new heads, and on side files.",
)
@options.checkpoint_options
@options.output_options
def command(
    base: Path,
    packs: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    method: str,
    prefer: Path | None,
    dtype: str | None,
    max_shard_size: str | None,
    no_verify: bool,
    force: bool,
    workers: int | None,
    device: str | None,
    backend: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Merge PACKS, all made from BASE, reading the base once.

    Where OUT ends in .dpk the result is a merged pack: applying it to the base gives the same bits as merging
    into a folder.
    """
    with show_progress("merging", quiet=quiet) as progress:
        report = deltapack.merge(
            base,
            packs,
            out,
            weights=weights or None,
            method=method,
            prefer=prefer,
            dtype=dtype,
            max_shard_size=max_shard_size,
            verify=not no_verify,
            force=force,
            workers=workers,
            device=device,
            backend=backend,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
        return
    if not quiet:
        amount = f"{count_of(report.tensors, 'tensor')}, {human_bytes(report.tensor_bytes)}"
        print_fields([("merged", str(report.out)), ("method", method), ("tensors", amount)])
        click.echo()
        print_table(("pack", "weight"), [(name, f"{weight:g}") for name, weight in report.weights])
    print_notes([] if quiet else report.notes, report.warnings)
