"""`deltapack export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

import deltapack
from deltapack.cli import options
from deltapack.cli.export_tables import print_adapter, print_difference, print_folder, print_full, print_torch
from deltapack.cli.render import print_json, print_notes, show_progress
from deltapack.cli.types import Choice
from deltapack.kinds import CHECKPOINT, FOLDER, check_output_name

__all__ = ["command"]

_WRITING = ("dtype", "max_shard_size", "workers")
_TAKEN: Mapping[str, tuple[str, ...]] = {
    "transformers": (),
    "peft": ("rank", "energy", "without_vectors", "dtype", "workers"),
    "safetensors": ("dtype", "workers"),
    "torch": _WRITING,
    "full": _WRITING,
}
"""Who takes which option."""
_OWN = ("rank", "energy", "without_vectors", *_WRITING)


@click.command(cls=options.Command, short_help="Write a pack in a form that another tool loads.")
@options.pack_argument
@click.option("--to", type=Choice(list(_TAKEN)), required=True, help="Who shall load it.")
@click.option("--base", required=True, metavar="BASE", help="The base: ORG/NAME or ORG/NAME@REVISION on the Hugging Face Hub, or a folder.")
@options.out_option(CHECKPOINT, "The folder to write; for --to safetensors a .safetensors file, for --to full either.")
@click.option("--rank", type=click.IntRange(min=1), metavar="R", help="peft: rank of the factors; with --energy, the largest one.")
@click.option(
    "--energy", type=float, metavar="E", help="peft: share of each difference's sum of squares to hold, such as 0.95, by a rank up to 256."
)
@click.option("--without-vectors", is_flag=True, help="peft: leave out norms, biases and new heads, which no LoRA holds.")
@click.option("--dtype", metavar="D", help="Type of factors (f32 unless given), differences or tensors, such as bf16.")
@click.option("--max-shard-size", metavar="S", help="torch, full: largest shard, such as 5GB; those of the base by default.")
@options.workers_option
@options.output_options
def command(pack: Path, to: str, base: str, out: Path, quiet: bool, as_json: bool, **given: object) -> None:
    """Write PACK, on its base, in a form that another tool loads.

    transformers: a folder with config.json, tokenizer, and PACK in place of weights, which from_pretrained loads
    with `import deltapack.integrations.transformers` in the program.

    peft: a LoRA of --rank R, or of the ranks that hold a share --energy E of each difference.

    safetensors: one file of differences, fine-tune minus base, as tools of task arithmetic take them.

    torch: the restored model as pytorch_model.bin. full: the same as `deltapack apply` writes it.

    docs/exporting.md tells more.
    """
    useless = options.typed_options([name for name in _OWN if name not in _TAKEN[to]])
    if useless:
        raise click.UsageError(f"--to {to} takes no {', '.join(useless)}.")
    if to != "full":
        check_output_name(out, CHECKPOINT if to == "safetensors" else FOLDER)
    _Call(pack, base, out, quiet, as_json).run(to, _Given(**given))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Given:
    """Options that only some take."""

    rank: int | None
    energy: float | None
    without_vectors: bool
    dtype: str | None
    max_shard_size: str | None
    workers: int | None


class _Report(Protocol):
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Made:
    """What was written, and how it is told."""

    report: _Report
    table: Callable[[], None]
    notes: Sequence[str]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class _Call:
    """One run of the command."""

    pack: Path
    base: str
    out: Path
    quiet: bool
    as_json: bool

    def run(self, to: str, given: _Given) -> None:
        """Write what is asked for, and say what was done."""
        made = self._made(to, given)
        if self.as_json:
            print_json(made.report.to_json())
            return
        if not self.quiet:
            made.table()
        print_notes([] if self.quiet else made.notes, made.warnings)

    def _made(self, to: str, given: _Given) -> _Made:
        """Write the form that is asked for."""
        pack, base, out, workers = self.pack, self.base, self.out, given.workers
        if to == "transformers":
            folder = deltapack.write_model_folder(pack, base, out)
            return _Made(folder, lambda: print_folder(folder), folder.notes)
        with show_progress("exporting", quiet=self.quiet) as progress:
            if to == "peft":
                adapter = deltapack.export_adapter(
                    pack,
                    base,
                    out,
                    rank=given.rank,
                    energy=given.energy,
                    dtype=given.dtype or "f32",
                    vectors=not given.without_vectors,
                    workers=workers,
                    progress=progress,
                )
                return _Made(adapter, lambda: print_adapter(adapter), adapter.notes, adapter.warnings)
            if to == "safetensors":
                difference = deltapack.export_difference(pack, base, out, dtype=given.dtype, workers=workers, progress=progress)
                return _Made(difference, lambda: print_difference(difference), difference.notes)
            limit, dtype = given.max_shard_size, given.dtype
            if to == "torch":
                files = deltapack.export_torch(pack, base, out, dtype=dtype, max_shard_size=limit, workers=workers, progress=progress)
                return _Made(files, lambda: print_torch(files), files.notes, files.warnings)
            full = deltapack.export_full(pack, base, out, dtype=dtype, max_shard_size=limit, workers=workers, progress=progress)
            return _Made(full, lambda: print_full(full), full.notes, full.warnings)
