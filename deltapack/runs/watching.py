"""Use case: pack the checkpoints of a training run as they appear."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deltapack.checking import as_number, as_path
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import CheckpointError, FormatError, LimitError, OutputError, RecipeError, UnsupportedError
from deltapack.runs.comparing import has_changed
from deltapack.runs.finding import Found, Signature, changed_since, checkpoints_in, others_in, signature_of, step_of
from deltapack.runs.keeping import pack_step, sweep_unfinished
from deltapack.runs.links import Link, Run, read_run
from deltapack.runs.steps import EVERY_ANCHOR, POLL, SETTLE, ChangedStep, PackedStep, SkippedStep

__all__ = ["Overview", "look_over", "watch"]

_UNREADABLE = (CheckpointError, LimitError, UnsupportedError)
_PACKS = "packs"


@dataclass(frozen=True)
class _Settings:
    folder: Path
    out: Path
    base: Path | None
    every_anchor: int
    keep: int | None
    settle: float
    workers: int | None


@dataclass
class _Memory:
    """What was seen before: since when each checkpoint is what it is, which could not be read, and which were compared with their packs."""

    since: dict[Path, tuple[Signature, float]] = field(default_factory=dict)
    skipped: dict[Path, Signature] = field(default_factory=dict)
    compared: dict[Path, Signature] = field(default_factory=dict)
    run: Run | None = None

    def since_when(self, path: Path, now: float) -> tuple[Signature | None, float]:
        """Return what a checkpoint is by its signature, none where it is gone, and since when it has been that."""
        signature = signature_of(path)
        if signature is None:
            return None, now
        if self.since.get(path, (None,))[0] != signature:
            self.since[path] = (signature, now)
        return self.since[path]


def watch(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    every_anchor: int = EVERY_ANCHOR,
    keep: int | None = None,
    settle: float = SETTLE,
    poll: float = POLL,
    once: bool = False,
    workers: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[PackedStep | SkippedStep | ChangedStep]:
    """Pack the checkpoints of a run, the oldest first, each when it is complete: when nothing of it has changed for a while.

    Which steps have a pack is read from the packs, so that a run may be watched again at any time. Checkpoints stay where they are.

    Args:
        folder: Where a trainer puts its checkpoints: `checkpoint-500`, `step_7`, `global_step20`, `step-100` and the like.
        base: What the run started from. Without one an anchor holds all of its checkpoint.
        out: The folder of the packs; `packs` in the folder unless given.
        every_anchor: Packs of a chain, at most.
        keep: How many of the newest steps stay packed, with what they need; all unless given.
        settle: Seconds for which nothing of a checkpoint may change before it is packed.
        poll: Seconds between two looks.
        once: Whether to end as soon as all checkpoints that are there are packed or skipped.
        workers: Threads; every core unless given.
        sleep: Waits; for tests.
        clock: Tells seconds; for tests.

    Yields:
        Each step that was packed, each that was not, once, until it changes, and each that was packed and has changed since, likewise.

    Raises:
        BaseMismatchError: The run was packed with another base.
        CheckpointError: The base is damaged or no checkpoint.
        FormatError: A pack of the run is damaged.
        NotACheckpointError: The folder cannot be listed.
        OutputError: A pack cannot be written.
        RecipeError: A number is out of range, or the packs would lie inside of a checkpoint.
    """
    folder = as_path("the folder to watch", folder)
    settle, poll = as_number("settle", settle), as_number("poll", poll)
    if not settle >= 0 or not poll > 0:
        raise RecipeError("the seconds are out of range", expected="settle of at least 0, poll above 0", found=f"{settle}, {poll}")
    packs = _packs_of(folder, out)
    _check_outside(folder, packs)
    settings = _Settings(folder, packs, None if base is None else as_path("the base", base), every_anchor, keep, settle, workers)
    if settings.base is not None:
        with open_checkpoint(settings.base):
            pass  # a fault of the base is not one of each checkpoint
    sweep_unfinished(packs)
    memory = _Memory()
    while True:
        waiting = yield from _look(settings, memory, clock)
        if once and not waiting:
            return
        sleep(poll)


@dataclass(frozen=True)
class Overview:
    """What a folder that is watched holds by now.

    Attributes:
        packs: The folder of the packs.
        checkpoints: Steps that have a checkpoint.
        packed: How many of them have a pack.
        unknown: Names of folders and of files of weights that tell no step.
    """

    packs: Path
    checkpoints: int
    packed: int
    unknown: tuple[str, ...]


def look_over(folder: str | Path, out: str | Path | None = None) -> Overview:
    """Tell what `watch` finds when it begins.

    Args:
        folder: Where a trainer puts its checkpoints.
        out: The folder of the packs; `packs` in the folder unless given.

    Raises:
        FormatError: A pack of the run is damaged.
        NotACheckpointError: The folder cannot be listed.
        OutputError: The folder of the packs cannot be listed.
        RecipeError: Two packs are of one step.
    """
    folder = as_path("the folder to watch", folder)
    packs = _packs_of(folder, out)
    steps = {one.step for one in checkpoints_in(folder)}
    packed = steps & {link.step for link in read_run(packs).links}
    return Overview(packs, len(steps), len(packed), tuple(path.name for path in others_in(folder) if path != packs))


def _packs_of(folder: Path, out: str | Path | None) -> Path:
    return folder / _PACKS if out is None else as_path("out", out)


def _check_outside(folder: Path, packs: Path) -> None:
    """Refuse to put packs into a checkpoint, or where one would be looked for.

    Raises:
        RecipeError: That is where they would be.
    """
    watched, place = Path(os.path.realpath(folder)), Path(os.path.realpath(packs))
    inside = place.relative_to(watched).parts[:1] if place.is_relative_to(watched) else ()
    named = [watched / name for name in inside if step_of(Path(name)) is not None]
    there = [one.path for one in (checkpoints_in(folder) if folder.is_dir() else ()) if place.is_relative_to(os.path.realpath(one.path))]
    for checkpoint in (*named, *there):
        hint = "Choose another folder for them, whose name says no step."
        raise RecipeError(f"the packs would lie inside of a checkpoint that is watched, {checkpoint.name}", path=packs, hint=hint)


def _look(
    settings: _Settings, memory: _Memory, clock: Callable[[], float]
) -> Generator[PackedStep | SkippedStep | ChangedStep, None, bool]:
    """Pack what is complete; return whether something may become so."""
    run = memory.run = read_run(settings.out, memory.run)
    there = checkpoints_in(settings.folder)
    found = _wanted(there, run, settings.keep)
    now, waiting = clock(), False
    looked = [(one, *memory.since_when(one.path, now)) for one in found]
    for one, signature, since in looked:
        if signature is None or memory.skipped.get(one.path) == signature:
            continue
        if now - since < settings.settle or signature_of(one.path) != signature:
            waiting = True
            break  # what comes after waits as well, so that each pack follows the step before
        memory.run = read_run(settings.out, memory.run)
        event = _pack(settings, memory.run, one, {other.step: other.path for other in reversed(there)})
        if event is None:
            waiting = True  # the packs are read again
            continue
        if isinstance(event, SkippedStep):
            memory.skipped[one.path] = signature
        yield event
        if isinstance(event, SkippedStep) and signature_of(one.path) != signature:
            waiting = True
            break  # it changed while it was packed, and is tried again
    return (yield from _compare(settings, memory, run, there, now)) or waiting


def _compare(settings: _Settings, memory: _Memory, run: Run, there: list[Found], now: float) -> Generator[ChangedStep, None, bool]:
    """Tell which checkpoints have changed since they were packed; return whether one has to settle before that can be said.

    Tensors are read only where a file is newer than the pack, and once for each time that something changes.
    """
    first, waiting = _first(there), False
    for link in run.links:
        one = first.get(link.step)
        if one is None or not _may_have_changed(one, link):
            continue
        signature, since = memory.since_when(one.path, now)
        if signature is None or memory.compared.get(one.path) == signature:
            continue
        if now - since < settings.settle:
            waiting = True
            continue
        changed = has_changed(one.path, link, settings.workers)
        if signature_of(one.path) != signature:
            waiting = True
            continue
        memory.compared[one.path] = signature
        if changed:
            yield ChangedStep(one.step, one.path, link.path)
    return waiting


def _may_have_changed(one: Found, link: Link) -> bool:
    try:
        return changed_since(one.path, link.path.stat().st_mtime_ns)
    except OSError:
        return False  # the pack has just been removed


def _wanted(found: list[Found], run: Run, keep: int | None) -> list[Found]:
    """Return the checkpoints that are to be packed: those of steps without a pack, which are not too old to stay."""
    packed = {link.step for link in run.links}
    steps = sorted(packed | {one.step for one in found})
    oldest = steps[-keep] if keep is not None and 0 < keep < len(steps) else -1
    return [one for step, one in _first(found).items() if step not in packed and step >= oldest]


def _first(found: list[Found]) -> dict[int, Found]:
    """Return the checkpoints by their steps; of several of one step the first."""
    first: dict[int, Found] = {}
    for one in found:
        first.setdefault(one.step, one)
    return first


def _pack(settings: _Settings, run: Run, one: Found, there: Mapping[int, Path]) -> PackedStep | SkippedStep | None:
    """Pack a checkpoint, with the help of others that are there; say why where it cannot be read.

    Returns none where it came to nothing because another watcher has packed the step, or removed packs, since the run was read.
    """
    try:
        with open_checkpoint(one.path):
            pass  # an index of shards is checked here, before anything is packed
    except (*_UNREADABLE, RecipeError) as error:  # the last one: two models in a folder
        return SkippedStep(one.step, one.path, str(error))
    try:
        return pack_step(
            settings.out,
            one.path,
            one.step,
            base=settings.base,
            every_anchor=settings.every_anchor,
            keep=settings.keep,
            checkpoints=there,
            workers=settings.workers,
        )
    except _UNREADABLE as error:
        return SkippedStep(one.step, one.path, str(error))
    except (FormatError, OutputError):
        now = {link.step for link in read_run(settings.out, run).links}
        if one.step not in now and {link.step for link in run.links} <= now:
            raise
        return None
