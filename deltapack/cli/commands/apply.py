"""`deltapack apply`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.engines import engine_options
from deltapack.cli.render import count_of, human_bytes, print_fields, print_json, print_notes, show_progress, weight_files_field
from deltapack.cli.types import PackOrRun
from deltapack.kinds import CHECKPOINT

__all__ = ["command"]


@click.command(cls=options.Command, short_help="Restore a fine-tune from its base and a pack, or a chain of packs.")
@options.base_argument
@click.argument("packs", type=PackOrRun(), nargs=-1, metavar="PACK...")
@click.option(
    "--step",
    type=click.IntRange(min=0),
    is_eager=True,  # a folder is fine with it
    metavar="N",
    help="Restore this step of a training run: PACK is the folder of its packs. BASE is left out where the run has none.",
)
@options.out_option(CHECKPOINT, "The folder to write, or a file if it ends in .safetensors.")
@click.option("--weight", type=float, default=1.0, show_default=True, metavar="W", help="Factor for the whole difference.")
@click.option("--rescale", type=float, metavar="F", help="Factor above 0 for kept values instead of the pack's own.")
@options.weights_option
@options.checkpoint_options
@engine_options
@options.output_options
def command(
    base: Path,
    packs: tuple[Path, ...],
    step: int | None,
    out: Path,
    weight: float,
    rescale: float | None,
    weight_files: str | None,
    dtype: str | None,
    max_shard_size: str | None,
    no_verify: bool,
    force: bool,
    resume: bool,
    workers: int | None,
    device: str | None,
    backend: str,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Restore the checkpoint that PACK was made from, over its BASE.

    Several packs are a chain: each was made from what the one before gives (compress --base-pack). Every
    tensor of the base is checked against the pack, and every restored tensor against the digest of the
    result (unless --weight, --rescale or --dtype ask for another result).

    `deltapack apply BASE FOLDER --step N` takes the packs of a step from those of a run (watch, PackCallback).
    """
    with _chain(base, packs, step) as (start, links), show_progress("restoring", quiet=quiet) as progress:
        report = deltapack.apply(
            start,
            links[0] if len(links) == 1 else links,
            out,
            weight=weight,
            rescale=rescale,
            weight_files=weight_files,
            dtype=dtype,
            max_shard_size=max_shard_size,
            verify=not no_verify,
            force=force,
            workers=workers,
            device=device,
            backend=backend,
            engine=engine,
            address=address,
            progress=progress,
            resume=resume,
        )
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        asked = [
            name for name, given in (("--weight", weight != 1), ("--rescale", rescale is not None), ("--dtype", dtype is not None)) if given
        ]
        fields = [
            ("restored" if report.written else "there already", str(report.out)),
            ("tensors", f"{count_of(report.tensors, 'tensor')}, {human_bytes(report.tensor_bytes)}"),
            ("verified", "every tensor matches the digests in the pack" if report.verified else f"no: {_why_not(no_verify, asked)}"),
        ]
        fields[2:2] = weight_files_field(report.weight_files)
        print_fields(fields)
    if not as_json:
        print_notes([] if quiet else report.notes, report.warnings)


def _chain(base: Path, packs: tuple[Path, ...], step: int | None) -> AbstractContextManager[tuple[Path, Sequence[Path]]]:
    """Return base and packs, as given or as a step needs them.

    Raises:
        click.UsageError: There are no packs, or not one folder for a step.
    """
    if step is None:
        if not packs:
            raise click.UsageError("Missing argument 'PACK...'.", click.get_current_context())
        return nullcontext((base, packs))
    folders = packs or (base,)
    if len(folders) > 1 or not folders[0].is_dir():
        raise click.UsageError("--step takes one folder of packs, after the base if the run has one.", click.get_current_context())
    from deltapack.runs.restoring import chain_of_step  # only now: the help needs no numpy

    return chain_of_step(folders[0], step, base if packs else None)


def _why_not(no_verify: bool, asked: list[str]) -> str:
    """Say why the result was compared with no digest."""
    if no_verify:
        return "--no-verify was given"
    if asked:
        return f"{' and '.join(asked)} ask{'s' if len(asked) == 1 else ''} for another result than the pack's; the base was checked"
    return "the pack has no digest for some of the tensors; the base was checked"
