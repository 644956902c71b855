"""From a model in memory to one that takes packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltapack.checkpoint import open_checkpoint
from deltapack.device.backends import choose
from deltapack.device.model_tensors import Names, find_model_tensors
from deltapack.device.work import UndoMode
from deltapack.errors import RecipeError
from deltapack.live.model import LiveModel
from deltapack.parallel import resolve_workers

__all__ = ["attach"]


def attach(
    model: Any,
    base: str | Path | None = None,
    *,
    names: Names | None = None,
    backend: str = "auto",
    undo: UndoMode = "auto",
    verify: bool = True,
    weight_files: str | None = None,
    workers: int | None = None,
) -> LiveModel:
    """Make a model in memory ready to take packs.

    The model must hold the base, bit for bit: a tensor is compared with the digest in a pack when the pack changes it for the first time.
    Addresses of tensors never change, so a model under `torch.compile` or CUDA graphs sees the packs; work is done on the current stream.

    Args:
        model: A `torch.nn.Module`, or a mapping of names to tensors; on one device or many.
        base: The checkpoint that it was loaded from, needed where the model holds more, less, or slices of its tensors.
        names: Which tensors of the base live under another name, in slices (`deltapack.Slice`), or not here (`None`).
        backend: `auto`, `cpu`, `torch` or `triton`.
        undo: `log` keeps the replaced elements, `copy` the whole tensors that are changed, `auto` whichever is smaller.
        verify: Whether the model is compared with the base that packs were made from.
        weight_files: Which weights count where the base's folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads that decode; every core unless given.

    Raises:
        BackendError: The backend cannot run on a device of the model.
        BaseMismatchError: A slice of the model differs from the checkpoint.
        RecipeError: The model and the base do not fit.
    """
    if base is not None and (not isinstance(base, str | Path) or Path(base).suffix == ".dpk"):
        hint = "attach(model) makes the model ready; its activate() takes packs."
        raise RecipeError("base is the checkpoint that the model was loaded from, not a pack", found=base, hint=hint)
    if undo not in ("auto", "copy", "log"):
        raise RecipeError("undo is unknown", expected="auto, copy or log", found=undo)
    if base is None:
        found = find_model_tensors(model, None, names or {})
    else:
        with open_checkpoint(base, weights=weight_files) as checkpoint:
            found = find_model_tensors(model, checkpoint, names or {})
            if verify:
                found.compare_slices(checkpoint)
    devices = {region.memory.device for region in found.regions.values()}
    choices = {device: choose(backend, device) for device in devices}
    return LiveModel(found, choices, undo, verify, resolve_workers(workers))
