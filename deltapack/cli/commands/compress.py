"""`deltapack compress`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.budgets import BUDGET_OPTIONS, budget_of, budget_options
from deltapack.cli.compress_tables import print_compression, print_preview
from deltapack.cli.engines import engine_options, refuse_engine
from deltapack.cli.render import print_json, print_notes, show_progress
from deltapack.cli.types import Choice
from deltapack.kinds import PACK_FILE
from deltapack.packing.overrides import SETTINGS, parse_override
from deltapack.packing.recipe import DENSE, INDEX_CHOICES, SPARSIFY_CHOICES, USUAL_RATE, VALUE_CHOICES, Recipe
from deltapack.packing.roles import SETTABLE

if TYPE_CHECKING:
    from deltapack.reports import CompressPreview, CompressReport

__all__ = ["command"]

Command = TypeVar("Command", bound=Callable[..., Any])
Report = TypeVar("Report", "CompressReport", "CompressPreview")


def _sparsify_options(command: Command) -> Command:
    """Add an option for each number that a sparsifier takes."""
    for name, option in reversed([(row.name, option) for row in SPARSIFY_CHOICES.values() for option in row.options]):
        command = click.option(
            f"--{option.name.replace('_', '-')}",
            type=float,
            metavar=option.metavar,
            help=f"For {name}: {option.text}",
        )(command)
    return command


ALL = ".*"
"""What `--exact` means without an expression."""
_DROPS = "; ".join(f"{row.name} {row.text}" for row in SPARSIFY_CHOICES.values())
_RANDOM = " and ".join(row.name for row in SPARSIFY_CHOICES.values() if row.random)


def _rescaled(how: str) -> str:
    """The sparsifiers that make up for what they drop in this way."""
    return " and ".join(row.name for row in SPARSIFY_CHOICES.values() if row.rescale == how)


@click.command(cls=options.Command, short_help="Pack the difference between a fine-tune and its base.")
@options.base_argument
@options.finetuned_argument
@options.out_option(PACK_FILE, "The pack to write. Required but for --dry-run.", required=False)
@budget_options
@click.option(
    "--drop-rate",
    type=float,
    metavar="P",
    help="No budget, but DARE: the share of the difference to drop, from 0 to below 1; "
    f"{USUAL_RATE} where another option says how to drop.",
)
@click.option(
    "--sparsify",
    type=Choice(list(SPARSIFY_CHOICES)),
    show_default=Recipe().dropping["sparsify"],
    help=f"What to drop: {_DROPS}. All but {_RANDOM} store their positions.",
)
@_sparsify_options
@click.option(
    "--values",
    type=Choice(VALUE_CHOICES),
    show_default=Recipe().dropping["values"],
    help="How kept values are stored; auto takes the smallest that --fidelity allows.",
)
@click.option(
    "--index",
    type=Choice(INDEX_CHOICES),
    show_default=Recipe().dropping["index"],
    help=f"How kept positions are stored; auto takes the smallest. gaps is a bitmap where over {100 * DENSE:.0f} % are kept.",
)
@click.option(
    "--rescale",
    type=float,
    metavar="FACTOR",
    help=f"Factor for kept values; unless given, 1 / (1 - rate) for {_rescaled('rate')}, one over the probability of each element for "
    f"{_rescaled('element')}, 1 for others.",
)
@click.option(
    "--exact",
    is_flag=False,
    flag_value=ALL,
    metavar="[REGEX]",
    help="Lose nothing: all tensors come back bit for bit, safetensors files byte for byte. With REGEX: tensors whose name has a match.",
)
@click.option("--seed", type=int, default=Recipe.seed, show_default=True, metavar="N", help="Another seed drops other elements.")
@click.option("--include", metavar="REGEX", help="Drop only from tensors whose name has a match; keep others bit for bit.")
@click.option("--exclude", metavar="REGEX", help="Keep tensors whose name has a match bit for bit.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="REGEX:KEY=VALUE,...",
    help="Other settings for tensors whose whole name matches, such as '.*lm_head.*:drop-rate=0.5,values=bf16'. "
    f"Keys: {', '.join(SETTINGS).replace('_', '-')}. Roles: {', '.join(SETTABLE)}. Repeatable; the last that matches wins.",
)
@options.map_option
@click.option(
    "--keep-base",
    metavar="REGEX",
    help="Keep tensors that only the base has and whose name has a match; else the result lacks them as the fine-tune does.",
)
@click.option("--allow-unrelated", is_flag=True, help="Go on where most of FINETUNED has nothing to do with BASE.")
@click.option("--include-code", is_flag=True, help="Let Python files of the fine-tune travel in the pack.")
@click.option(
    "--max-side-file", metavar="SIZE", help="Pack side files (tokenizer, config) up to this size, such as 200MB; 128 MiB unless given."
)
@click.option("--max-part-size", metavar="SIZE", help="Write a larger pack in parts of at most this size, such as 5GB, with their index.")
@click.option(
    "--leave-out",
    multiple=True,
    metavar="GLOB",
    help="Leave side files behind: '*.md' at the top, 'logs/*' below logs, '**/*.md' anywhere.",
)
@click.option(
    "--follow-links",
    is_flag=True,
    help="Pack side files that are symbolic links to files outside of FINETUNED; else they stay behind, and are named.",
)
@click.option(
    "--fidelity",
    type=float,
    metavar="SHARE",
    help="Noise that --values auto may add, as a share of the noise of dropping; 0.05 unless given.",
)
@click.option(
    "--non-finite",
    type=Choice(["error", "store"]),
    default=Recipe.non_finite,
    show_default=True,
    help="What to do with a changed tensor that holds NaN or infinity: stop, or store it whole.",
)
@options.base_packs_option
@click.option("--dry-run", is_flag=True, help="Show what would become of each tensor and about how large the pack would be, and stop.")
@options.weights_option
@options.workers_option
@options.force_option
@engine_options
@options.output_options
def command(
    base: Path,
    finetuned: Path,
    out: Path | None,
    target_size: str | None,
    target_ratio: float | None,
    target_bits: float | None,
    quality: str | None,
    drop_rate: float | None,
    sparsify: str | None,
    values: str | None,
    index: str | None,
    rescale: float | None,
    exact: str | None,
    seed: int,
    include: str | None,
    exclude: str | None,
    overrides: Sequence[str],
    name_map: list[tuple[str, str]],
    keep_base: str | None,
    allow_unrelated: bool,
    include_code: bool,
    max_side_file: str | None,
    max_part_size: str | None,
    leave_out: Sequence[str],
    follow_links: bool,
    fidelity: float | None,
    non_finite: str,
    base_packs: tuple[Path, ...],
    dry_run: bool,
    weight_files: str | None,
    workers: int | None,
    force: bool,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
    **of_sparsifiers: Any,
) -> None:
    """Pack the difference between FINETUNED and BASE.

    Both are a Hugging Face folder, a .safetensors file, a PyTorch .bin or .pt state dict, or a folder of
    torch.distributed.checkpoint; FINETUNED may also be the folder of a PEFT adapter. The same inputs and
    options give the same pack, byte for byte.
    """
    budget = budget_of(target_size, target_ratio, target_bits, quality)
    settings = [*BUDGET_OPTIONS, *(field.name for field in fields(Recipe) if field.name != "exact")]
    idle = options.typed_options(settings) if exact == ALL else []
    if idle:
        raise click.UsageError(f"{idle[0]} does nothing where all is exact. Leave it out, or name what must be exact: --exact REGEX.")
    recipe = Recipe(
        drop_rate=drop_rate,
        sparsify=sparsify,
        values=values,
        index=index,
        rescale=rescale,
        seed=seed,
        include=include,
        exclude=exclude,
        overrides=tuple(map(parse_override, overrides)),
        fidelity=fidelity,
        non_finite=non_finite,
        exact=exact is not None and (exact == ALL or exact),
        budget=budget,
        **of_sparsifiers,
    )
    how: dict[str, Any] = {
        "recipe": recipe,
        "name_map": name_map,
        "include_code": include_code,
        "keep_base": keep_base,
        "allow_unrelated": allow_unrelated,
        "weight_files": weight_files,
        "max_side_file": max_side_file,
        "leave_out": leave_out,
        "follow_links": follow_links,
        "base_packs": base_packs,
        "workers": workers,
    }
    if dry_run:
        refuse_engine("--dry-run")
        with show_progress("looking", quiet=quiet) as progress:
            preview = deltapack.preview_compress(base, finetuned, progress=progress, **how)
        _finish(preview, print_preview, quiet=quiet, as_json=as_json)
        return
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")
    with show_progress("compressing", quiet=quiet) as progress:
        report = deltapack.compress(
            base, finetuned, out, max_part_size=max_part_size, force=force, engine=engine, address=address, progress=progress, **how
        )
    _finish(report, print_compression, quiet=quiet, as_json=as_json)


def _finish(report: Report, show: Callable[[Report], None], *, quiet: bool, as_json: bool) -> None:
    """Print a report as it was asked for."""
    if as_json:
        print_json(report.to_json() | {"ratio": report.ratio})
        return
    if not quiet:
        show(report)
        if report.notes:
            click.echo()
    print_notes([] if quiet else report.notes, report.warnings)
