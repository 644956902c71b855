"""Use case: any step of a training run, back from its packs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltapack.checking import as_path
from deltapack.checkpoint.sidefiles import is_training_state
from deltapack.errors import OutputError
from deltapack.format.atomic import fsync_folder, writing
from deltapack.format.paths import is_weight_file
from deltapack.format.placing import move_new
from deltapack.reports import Progress
from deltapack.restoring.applying import apply
from deltapack.runs.gaps import missing_told
from deltapack.runs.keeping import whole_number
from deltapack.runs.links import LAST_STEP, check_root, read_run
from deltapack.runs.making import base_or_nothing
from deltapack.sources.locks import scratch

__all__ = ["chain_of_step", "restore_step"]


def restore_step(
    folder: str | Path,
    step: int,
    out: str | Path,
    *,
    base: str | Path | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Restore the checkpoint of a step; every tensor is checked.

    A folder `out` that holds a trainer's state, but no weights, gets the files that it lacks. One that holds the checkpoint of this very
    step is left as it is.

    Args:
        folder: The folder of the run's packs.
        step: The step.
        out: The folder to write, or a file if it ends in `.safetensors`.
        base: What the run was packed with, if anything.
        force: Whether to replace an existing `out`.
        workers: Threads; every core unless given.
        progress: Called with bytes of the result done so far and in all.

    Returns:
        `out`.

    Raises:
        BaseMismatchError: This is not the base, or a pack is missing.
        FormatError: A pack is damaged.
        OutputError: `out` holds other weights, or cannot be written.
        RecipeError: The step has no pack, or is no number.
    """
    out = as_path("out", out)
    with chain_of_step(folder, step, base) as (start, packs):
        weights = _weights_in(out) if out.is_dir() and not force else []
        if force or weights or not out.is_dir():
            with _weights_told(out, weights):
                apply(start, packs, out, force=force, workers=workers, progress=progress)
            return out
        with writing(out), scratch(".restoring-", out) as work:
            restored = work / "checkpoint"
            apply(start, packs, restored, workers=workers, progress=progress)
            _fill(restored, out)
    return out


@contextlib.contextmanager
def chain_of_step(folder: str | Path, step: int, base: str | Path | None) -> Iterator[tuple[Path, list[Path]]]:
    """Find what a step is restored from: a base, which is empty where there is none, and the packs of its chain.

    Args:
        folder: The folder of the run's packs.
        step: The step.
        base: What the run was packed with, if anything.

    Raises:
        BaseMismatchError: There is no base, or one too many; or what is done with the chain raises it, which is told more of then.
        FormatError: A pack is damaged.
        OutputError: The folder cannot be listed.
        RecipeError: The step has no pack, or is no number.
    """
    run = read_run(as_path("the folder of packs", folder))
    chain = run.chain(run.of(whole_number("step", step, 0, LAST_STEP)))
    check_root(chain, base is not None)
    with base_or_nothing(base) as start, missing_told(chain):
        yield start, [link.path for link in chain]


def _weights_in(out: Path) -> list[str]:
    """Return the names of a folder's own weights."""
    return sorted(path.name for path in out.iterdir() if is_weight_file(path.name) and not is_training_state(path.name))


@contextlib.contextmanager
def _weights_told(out: Path, weights: Sequence[str]) -> Iterator[None]:
    """Say which weights are in the way of an output."""
    try:
        yield
    except OutputError as error:
        if not weights:
            raise
        expected, hint = "a folder without weights, or with those of the step", "Choose another output, or replace it by force."
        raise OutputError("the output holds weights", path=out, expected=expected, found=weights[0], hint=hint) from error


def _fill(restored: Path, out: Path) -> None:
    """Move the files of a restored checkpoint to a folder that has none of its weights; an index last, as it says that all are there."""
    from_packs = sorted(path.relative_to(restored) for path in restored.rglob("*") if path.is_file() and not path.name.startswith("."))
    for name in sorted(from_packs, key=lambda name: name.name.endswith(".index.json")):
        if not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            move_new(restored / name, out / name)
            fsync_folder((out / name).parent)
    fsync_folder(out)
