"""Tensors of a base that a model holds inside of a fused one, as transformers 5 holds experts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.checkpoint.families import Family, find_families, parts_from, readings_of, siblings_of
from deltapack.device.regions import dtype_of
from deltapack.format.arrangement import Arrangement

__all__ = ["fused_views", "holder_of", "own_infos"]

_SAMPLED = 8
"""Separate tensors of which a row is compared to tell in which order a fused one holds them."""


def own_infos(state: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """Return types and shapes of a model's tensors by name."""
    known = {name: dtype_of(tensor) for name, tensor in state.items()}
    return {name: TensorInfo(name, dtype, tuple(state[name].shape), "") for name, dtype in known.items() if dtype is not None}


def holder_of(name: str, base: Mapping[str, TensorInfo], own: Mapping[str, TensorInfo]) -> str | None:
    """Return the fused tensor of a model that, by names and shapes, holds a tensor of the base."""
    for family in _families(base, own):
        if any(name in row for row in family.parts):
            return family.fused
    return None


def fused_views(state: Mapping[str, torch.Tensor], base: Checkpoint, named: Collection[str]) -> dict[str, torch.Tensor]:
    """Return views of a model's fused tensors as the base's separate ones, and tensors beside them that have other names.

    Names and shapes say which may hold which; of several orders the one that has the base's elements, in a sample, counts.

    Args:
        state: The model's tensors.
        base: The checkpoint that it was loaded from.
        named: Tensors of the base of which the user says where they live.
    """
    own, out = own_infos(state), dict[str, torch.Tensor]()
    base_tensors = {name: info for name, info in base.tensors.items() if name not in named}
    families = _families(base_tensors, own)
    for family in families:
        fitting = []
        # Blocks that take turns are no one region of memory.
        for reading in [one for one in readings_of(family, own[family.fused], base_tensors) if one.blocks == 1]:
            boxes = parts_from(family, reading, base_tensors)
            views = {name: _view(state[family.fused], box) for name, box in boxes.items()}
            if all(_holds(views[name], base, name) for name in list(views)[:: max(1, len(views) // _SAMPLED)]):
                fitting.append(views)
        if len(fitting) == 1:
            out |= fitting[0]
    alone = {name for name in own if name not in base.tensors}
    for name, other in siblings_of(families, alone, base_tensors.keys() - own.keys() - out.keys()).items():
        if _holds(state[other], base, name):
            out[name] = state[other]
    return out


def _families(base: Mapping[str, TensorInfo], own: Mapping[str, TensorInfo]) -> list[Family]:
    """Return fused tensors of a model and the base's separate ones, neither of which the other has."""
    fused = {name: info for name, info in own.items() if name not in base}
    parts = {name: info for name, info in base.items() if name not in own}
    return find_families(fused, parts)


def _view(fused: torch.Tensor, box: Arrangement) -> torch.Tensor:
    """Return the part of a fused tensor that the one piece of an arrangement is, without a copy."""
    ((piece, cell),) = box.cells
    with torch.no_grad():
        view, outer = fused.detach(), len(piece.start) - len(cell)
        for at, (start, size) in enumerate(zip(piece.start, piece.extent_in(cell), strict=True)):
            view = view.narrow(at, start, size)
        view = view[(0,) * outer] if outer else view
        return view.transpose(-1, -2) if piece.transposed else view


def _holds(view: torch.Tensor, base: Checkpoint, name: str) -> bool:
    """Whether a view has the elements of a tensor of the base, in its first and last row."""
    info = base.tensors[name]
    if dtype_of(view) != info.dtype or tuple(view.shape) != info.shape:
        return False
    rows = view.reshape(1, -1) if view.dim() < 2 else view
    width = rows.shape[-1]
    for row in {0, len(rows) - 1}:
        wanted = base.read(name, row * width, (row + 1) * width)
        if rows[row].contiguous().view(torch.uint8).cpu().numpy().tobytes() != wanted.tobytes():
            return False
    return True
