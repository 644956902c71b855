"""A callback of `transformers.Trainer` that keeps every saved step as an exact pack, and brings any of them back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from deltapack.checking import as_path
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import OutputError, RecipeError
from deltapack.format.atomic import writing
from deltapack.reports import Progress
from deltapack.runs.finding import checkpoints_in
from deltapack.runs.keeping import check_settings, pack_step
from deltapack.runs.links import check_root, read_run
from deltapack.runs.restoring import restore_step
from deltapack.runs.steps import EVERY_ANCHOR, PackedStep

__all__ = ["PackCallback", "restore_checkpoint"]

_LOG = logging.getLogger(__name__)
_LEAVE = ("checkpoint", "state", "nothing")


class PackCallback(TrainerCallback):
    """Packs what `Trainer` saves, step by step, bit for bit.

    Packs hold the model: weights, config, tokenizer. They do not hold what else `Trainer` writes to `checkpoint-N`: the optimizer, the
    scheduler, the states of random numbers, `trainer_state.json`. Training goes on exactly from a step only where these are still there:
    `leave="state"` keeps them and deletes the weights, which are the smaller part of them with Adam.

    Args:
        base: The checkpoint that the run started from, such as the folder that `from_pretrained` was given. Without one an anchor holds
            all of its checkpoint.
        packs: The folder of the packs; `packs` in the trainer's output folder unless given.
        every_anchor: Every so many saves the pack is made from the base, and not from the save before.
        keep: How many of the newest steps stay packed, with what they need; all unless given.
        leave: What stays of the trainer's own `checkpoint-N` once it is packed: the whole `checkpoint`, its `state` without the weights,
            or `nothing`.
        workers: Threads; every core unless given.

    Raises:
        RecipeError: `leave` is something else, a number is out of range, or a path is none.
    """

    def __init__(
        self,
        base: str | Path | None = None,
        packs: str | Path | None = None,
        *,
        every_anchor: int = EVERY_ANCHOR,
        keep: int | None = None,
        leave: str = "checkpoint",
        workers: int | None = None,
    ) -> None:
        if leave not in _LEAVE:
            raise RecipeError("leave is unknown", expected=f"one of {', '.join(_LEAVE)}", found=repr(leave)[:60])
        self.base = None if base is None else as_path("the base", base)
        self.packs = None if packs is None else as_path("the folder of packs", packs)
        check_settings(every_anchor, keep)
        self.every_anchor, self.keep, self.leave, self.workers = every_anchor, keep, leave, workers

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the base and at the packs that are there: what is wrong with them should not come up at the first save.

        Raises:
            DeltapackError: The base is no checkpoint, or packs are damaged, or of a run with another kind of base.
        """
        if not state.is_world_process_zero:
            return
        if self.base is not None:
            with open_checkpoint(self.base):
                pass
        run = read_run(self._packs_in(args.output_dir))
        if run.links:
            check_root(run.chain(run.links[-1]), self.base is not None)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pack the checkpoint that the trainer has just written.

        Where a run was resumed from an earlier step, packs of this step and of later ones are of the run that was left: they go when the
        new one is made.

        Raises:
            DeltapackError: As `deltapack.runs.keeping.pack_step`; training stops, as without the error steps would be missing.
        """
        if not state.is_world_process_zero:
            return
        checkpoint, packs = Path(args.output_dir) / f"checkpoint-{state.global_step}", self._packs_in(args.output_dir)
        packed = pack_step(
            packs,
            checkpoint,
            state.global_step,
            base=self.base,
            every_anchor=self.every_anchor,
            keep=self.keep,
            checkpoints={one.step: one.path for one in checkpoints_in(Path(args.output_dir)) if one.path.name.startswith("checkpoint-")},
            going_back=True,
            workers=self.workers,
        )
        left = sorted(step for step in packed.removed if step >= packed.step)
        if left:
            _LOG.warning("removed the packs of steps %s: the run went back and is at step %d", left, packed.step)
        for text in packed.warnings:
            _LOG.warning("%s", text)
        _LOG.info("packed step %d: %s", packed.step, _told(packed))
        if self.leave != "checkpoint":
            _delete(checkpoint, whole=self.leave == "nothing")

    def restore_checkpoint(self, step: int, output_dir: str | Path) -> Path:
        """Bring back the weights of a step into the trainer's `checkpoint-N`, so that training can go on there.

        Args:
            step: The step.
            output_dir: The trainer's output folder.

        Returns:
            The folder, for `trainer.train(resume_from_checkpoint=...)`.

        Raises:
            DeltapackError: As `restore_checkpoint`.
        """
        folder = as_path("the output folder", output_dir)
        return restore_checkpoint(self._packs_in(folder), step, base=self.base, out=folder / f"checkpoint-{step}", workers=self.workers)

    def _packs_in(self, output_dir: str | Path) -> Path:
        return Path(output_dir) / "packs" if self.packs is None else self.packs


def restore_checkpoint(
    run_folder: str | Path,
    step: int,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Restore the model of a step from the packs of a run.

    A folder that holds a trainer's state without weights gets them back; elsewhere there is a model, but no state of its training.

    Args:
        run_folder: The folder of the packs.
        step: The step.
        base: What the run was packed with, if anything.
        out: The folder to write; `checkpoint-N` beside the folder of the packs unless given.
        force: Whether to replace a folder with weights.
        workers: Threads; every core unless given.
        progress: Called with bytes of the result done so far and in all.

    Returns:
        The folder.

    Raises:
        BaseMismatchError: This is not the base, or a pack is missing.
        FormatError: A pack is damaged.
        OutputError: The folder holds weights, or cannot be written.
        RecipeError: The step has no pack.
    """
    packs = as_path("the folder of packs", run_folder)
    out = packs.resolve().parent / f"checkpoint-{step}" if out is None else out
    return restore_step(packs, step, out, base=base, force=force, workers=workers, progress=progress)


def _told(packed: PackedStep) -> str:
    made = "an anchor" if packed.follows is None else f"follows step {packed.follows}"
    return f"{packed.pack} ({made}), {packed.pack_bytes:,} bytes for {packed.checkpoint_bytes:,}"


def _delete(checkpoint: Path, *, whole: bool) -> None:
    """Delete a checkpoint that was packed, or its weights; the pack is on the disk by now."""
    with open_checkpoint(checkpoint) as opened:
        weights = opened.weight_paths()
    with writing(checkpoint):
        if whole:
            shutil.rmtree(checkpoint)
            return
        if any(path.parent != checkpoint for path in weights):
            hint = "Take leave='checkpoint' or leave='nothing' with sharded checkpoints."
            raise OutputError("the weights lie in a folder of their own, which a trainer wants whole", path=checkpoint, hint=hint)
        for path in weights:
            path.unlink()
        for path in checkpoint.glob("*.index.json"):
            path.unlink()
