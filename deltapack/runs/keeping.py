"""Use case: the checkpoints of a training run as exact packs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deltapack.adapters import adapter_folder
from deltapack.checking import as_count, as_path
from deltapack.errors import CheckpointError, InputChangedError, OutputError, RecipeError, UnsupportedError
from deltapack.format.atomic import fsync_folder, writing
from deltapack.format.placing import place, seen_at
from deltapack.limits import DEFAULT_LIMITS
from deltapack.reports import Progress
from deltapack.runs.comparing import times_of
from deltapack.runs.gaps import gap_before
from deltapack.runs.links import LAST_STEP, Link, Run, pack_name, read_run
from deltapack.runs.making import Maker, base_or_nothing, result_of
from deltapack.runs.steps import EVERY_ANCHOR, PackedStep
from deltapack.sources.locks import scratch, sweep_scratch

__all__ = ["check_settings", "keep_newest", "pack_step", "sweep_unfinished", "whole_number"]

_UNFINISHED = ".packing-"
"""How the names of folders begin in which a pack is made."""


def pack_step(
    folder: str | Path,
    checkpoint: str | Path,
    step: int,
    *,
    base: str | Path | None = None,
    every_anchor: int = EVERY_ANCHOR,
    keep: int | None = None,
    checkpoints: Mapping[int, Path] | None = None,
    going_back: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PackedStep:
    """Pack a checkpoint of a run, bit for bit: against the step before, or against the base where a chain is long enough.

    Where the step before cannot be restored with this base, as packs are missing, the new one is made from the base, with a warning.

    Args:
        folder: The folder of the run's packs; it is made if need be.
        checkpoint: What to pack: a folder or file that `compress` takes.
        step: Its step, which has no pack yet.
        base: What the run started from. Without one an anchor holds all of its checkpoint.
        every_anchor: Packs of a chain, at most; 1 makes each from the base.
        keep: How many of the newest steps stay; all unless given. What they need stays, too.
        checkpoints: Checkpoints of earlier steps that are still there, by step: where the one before is among them, it is read instead of
            being restored from its chain, which takes longer. One that has changed since is not used.
        going_back: Whether packs of this step and of later ones are of a run that was left: they are removed once the new pack is made.
        workers: Threads; every core unless given.
        progress: Called with bytes of the checkpoint done so far and in all.

    Raises:
        BaseMismatchError: The run was packed with another base, or the checkpoint has nothing to do with it.
        CheckpointError: The checkpoint is damaged or no checkpoint, or it changed while it was packed.
        FormatError: A pack of the run is damaged.
        OutputError: The step has a pack already, or it cannot be written.
        RecipeError: A number is out of range.
        UnsupportedError: The checkpoint holds weights that are not read, or is an adapter.
    """
    folder, checkpoint = as_path("the folder of packs", folder), as_path("the checkpoint", checkpoint)
    sweep_unfinished(folder)
    step = whole_number("step", step, 0, LAST_STEP)
    check_settings(every_anchor, keep)
    _refuse_adapter(checkpoint)
    run, path = read_run(folder), folder / pack_name(step)
    left = [link for link in run.links if going_back and link.step >= step]
    run = replace(run, links=tuple(link for link in run.links if link not in left))
    if any(link.step == step for link in run.links):
        raise _packed_already(path)
    there = seen_at(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    before = _chain_before(run, step, every_anchor)
    gap = gap_before(run, before, None if base is None else as_path("the base", base), workers) if before else None
    before = before if gap is None else ()
    earlier = checkpoints.get(before[-1].step) if before and checkpoints is not None else None
    with _workplace(folder) as work, base_or_nothing(base) as start:
        maker = Maker(start, checkpoint, made := work / path.name, base is None, workers, progress)
        with _unchanged(checkpoint):
            report = maker.follow(before, earlier)
            if before and _comes_back(before, result_of(made)):
                before = ()
                report = maker.follow(before, None)
        if path not in [link.path for link in left] and os.path.lexists(path):
            raise _packed_already(path)  # since a moment ago
        # Until here a failure leaves the run as it was. What follows a pack goes before the pack itself.
        removed = _remove([link for link in left if link.step > step])
        with writing(path):
            place(made, path, there)
            fsync_folder(folder)
    removed += tuple(link.step for link in left if link.step == step)
    removed += keep_newest(folder, keep) if keep is not None else ()
    notes, follows = (*report.notes, *report.warnings), before[-1].step if before else None
    return PackedStep(step, path, report.pack_bytes, report.checkpoint_bytes, follows, removed, notes, () if gap is None else (gap,))


def _refuse_adapter(checkpoint: Path) -> None:
    """Refuse an adapter: a step follows the step before, and an adapter is for the base of the run.

    Raises:
        UnsupportedError: It is one.
    """
    if adapter_folder(checkpoint) is not None:
        hint = "Adapters are small: keep them as they are, or make a pack of each from the base with `deltapack compress BASE ADAPTER`."
        raise UnsupportedError("the checkpoint of the run is an adapter, not a whole model", path=checkpoint, hint=hint)


def _packed_already(path: Path) -> OutputError:
    return OutputError("the step has a pack already", path=path, hint="Remove it, or choose another folder.")


def check_settings(every_anchor: object, keep: object) -> None:
    """Look at what says which packs there are.

    Raises:
        RecipeError: A number is out of range, or is none.
    """
    whole_number("every_anchor", every_anchor, most=DEFAULT_LIMITS.links)
    if keep is not None:
        whole_number("keep", keep)


def whole_number(what: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return a whole number in a range, of which no `most` is no end.

    Raises:
        RecipeError: It is not, or is none.
    """
    number = as_count(what, value)
    if number < least or (most is not None and number > most):
        expected = f"at least {least}" if most is None else f"{least} to {most:,}"
        raise RecipeError(f"{what} is out of range", expected=expected, found=number)
    return number


def _chain_before(run: Run, step: int, length: int) -> tuple[Link, ...]:
    """Return the packs that the pack of a new step follows; none where it is to be an anchor."""
    last = run.before(step)
    chain = run.chain(last) if last is not None else ()
    # What gives the base itself is as good as the base, and who reads the packs cannot tell one from the other.
    return () if not chain or len(chain) >= length or chain[-1].result == chain[0].base else chain


def _comes_back(chain: Sequence[Link], result: str) -> bool:
    """Whether a step gives what an earlier one than the last gives, or the base: nobody would restore it by going in a circle."""
    return result != chain[-1].result and result in {chain[0].base, *(link.result for link in chain)}


@contextlib.contextmanager
def _unchanged(checkpoint: Path) -> Iterator[None]:
    """Require a checkpoint to stay what it is: a pack of a half of what was and a half of what is would restore neither.

    Raises:
        CheckpointError: It was written to meanwhile.
    """
    before, cause = times_of(checkpoint), None
    try:
        yield
    except InputChangedError as error:
        if error.path is None or not Path(error.path).is_relative_to(checkpoint):
            raise
        cause = error
    if cause is not None or times_of(checkpoint) != before:
        hint = "Pack it when nothing writes to it."
        raise CheckpointError("the checkpoint changed while it was packed", path=checkpoint, hint=hint) from cause


def sweep_unfinished(folder: Path) -> None:
    """Remove the packs that killed processes have not finished in a folder of packs."""
    sweep_scratch(_UNFINISHED, folder)


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a hidden folder for what is not finished; whatever happens, it goes."""
    with writing(folder), scratch(_UNFINISHED, folder) as work:
        yield work


def keep_newest(folder: str | Path, count: int) -> tuple[int, ...]:
    """Remove the packs of old steps, but never one that a newer one needs.

    Args:
        folder: The folder of the run's packs.
        count: How many of the newest steps stay.

    Returns:
        The steps whose packs were removed.

    Raises:
        FormatError: A pack is damaged; nothing is removed then.
        OutputError: A pack cannot be removed.
    """
    run = read_run(as_path("the folder of packs", folder))
    kept = run.newest(whole_number("keep", count))
    return _remove([link for link in run.links if link not in kept])


def _remove(links: Sequence[Link]) -> tuple[int, ...]:
    """Remove packs, the newest first: whenever this is cut short, none is left that follows a missing one."""
    for link in reversed(links):
        try:
            os.unlink(link.path)
        except FileNotFoundError:
            continue  # another watcher was faster
        except OSError as error:
            raise OutputError(f"a pack cannot be removed: {error.strerror or error}", path=link.path) from error
    return tuple(link.step for link in links)
