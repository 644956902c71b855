"""The tensors of a model in memory as a base: where each lives, under which name, in which slice, tied to what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.device.fused import fused_views, holder_of, own_infos
from deltapack.device.regions import Region, dtype_of, read_chunk, region_of
from deltapack.errors import BaseMismatchError, RecipeError
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest

__all__ = ["ModelTensors", "Names", "Slice", "find_model_tensors", "state_of"]

MODEL = Path("the model")
"""Stands for a path in messages."""


@dataclass(frozen=True)
class Slice:
    """A slice of a tensor of the base that lives in a slice of a tensor of the model, as in fused or sharded layers.

    The second third of a fused `qkv_proj` of 3 x 4,096 rows, of which this rank holds every second half:

    >>> key = Slice("layers.0.qkv_proj.weight", into=(slice(2048, 4096),), of=(slice(0, 2048),))

    Attributes:
        tensor: Name of the model's tensor.
        into: Its rows and columns that hold the slice; all unless given.
        of: Rows and columns of the base's tensor that are held; all unless given.
    """

    tensor: str
    into: tuple[slice, ...] = ()
    of: tuple[slice, ...] = ()


Names = Mapping[str, "str | Slice | None"]
"""From names in the base to where they live in the model; `None` where this process does not hold the tensor."""


@dataclass
class ModelTensors:
    """A model in memory as the base of packs; see `deltapack.composing.basecheck.BaseTensors`.

    Attributes:
        tensors: The base's tensors by name; of tied ones the first.
        aliases: From second names of tied tensors to the first.
        regions: Where they live; absent where this process does not hold one.
        path: What messages call it.
        roots: Root digests of whole tensors as they were before any pack was active.
        further: Where else a tensor lives: other slices of it, or copies.
        refused: Tensors that live here in a way that no pack can change, and why.
        elements: The base, open, where what this process does not hold of it can be read.
    """

    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    regions: Mapping[str, Region]
    path: Path = MODEL
    roots: dict[str, str] = field(default_factory=dict)
    further: Mapping[str, tuple[Region, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    elements: Checkpoint | None = None

    def region(self, name: str) -> Region | None:
        """Return where a tensor of the base lives, by any of its names."""
        return self.regions.get(self.aliases.get(name, name))

    def places(self, name: str) -> tuple[Region, ...]:
        """Return all places where a tensor of the base lives, by its first name; none where this process does not hold it."""
        first = self.regions.get(name)
        return () if first is None else (first, *self.further.get(name, ()))

    def check(self, name: str, digest: str) -> None:
        """Compare a tensor, as it was when this was first asked, with its digest (if there is one); slices are not compared.

        Raises:
            BaseMismatchError: It has another.
        """
        region, info = self.regions.get(name), self.tensors[name]
        if region is None or region.memory.numel() != info.numel:
            return
        if name not in self.roots:
            chunks = (chunk_digest(read_chunk(region, info, chunk)) for chunk in range(chunk_count(info.numel)))
            self.roots[name] = root_digest(info.dtype.name, info.shape, chunks)
        if digest and self.roots[name] != digest:
            raise BaseMismatchError(
                "the tensor of the model has other content than the one that the pack was made from",
                path=self.path,
                tensor=name,
                expected=f"digest {digest}",
                found=self.roots[name],
                rule="R12",
                hint="Load the very base checkpoint (same revision, same dtype), and attach before anything changes it; where the pack "
                "follows another one (`deltapack log`), `live.step` takes that one first, or `deltapack squash` makes one of both.",
            )

    def compare_slices(self, base: Checkpoint) -> None:
        """Compare the slices that the model holds with a checkpoint, as digests are of whole tensors.

        Raises:
            BaseMismatchError: An element differs.
        """
        for name, region in self.regions.items():
            info = self.tensors[name]
            for chunk in region.chunks if region.memory.numel() < info.numel else ():
                wanted = base.read(name, chunk * CHUNK, min((chunk + 1) * CHUNK, info.numel))
                found = read_chunk(region, info, chunk, around=wanted)
                if found.tobytes() != wanted.tobytes():
                    hint = "Load the model from the very checkpoint that `base` names, in the same dtype."
                    what = "the model differs from its base"
                    raise BaseMismatchError(what, path=base.path, tensor=name, found=f"chunk {chunk}", hint=hint)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, of a module or a mapping.

    Raises:
        RecipeError: It is neither, or a tensor has no memory.
    """
    state = model.state_dict(keep_vars=True) if isinstance(model, torch.nn.Module) else model
    if not isinstance(state, Mapping):
        raise RecipeError("this is neither a module nor a mapping of names to tensors", found=type(model).__name__)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            hint = "Load the weights first; parts that are off-loaded to disk cannot take packs."
            raise RecipeError("the tensor has no memory (device meta)", tensor=name, hint=hint)
    return tensors


def find_model_tensors(model: Any, base: Checkpoint | None, names: Names) -> ModelTensors:
    """Find where the base's tensors live.

    Args:
        model: A module or a mapping of names to tensors.
        base: The base; the model's own tensors are the base's unless given.
        names: What lives elsewhere than under its own name.

    Raises:
        RecipeError: A tensor is not found, has another shape or type, or a slice needs `base`.
    """
    state = state_of(model)
    if base is None:
        if any(isinstance(slot, Slice) for slot in names.values()):
            raise RecipeError("slices of fused or sharded layers need base=", hint="Its headers say what the whole tensors look like.")
        return _own_slots(state, names)
    views = fused_views(state, base, names)
    regions: dict[str, Region] = {}
    for name, info in base.tensors.items():
        slot = names.get(name, name)
        if slot is None:
            continue
        slot = Slice(slot) if isinstance(slot, str) else slot
        tensor = views.get(name, state.get(slot.tensor))
        if tensor is None:
            second = next((other for other, first in base.aliases.items() if first == name and other in state), None)
            tensor = state[second] if second is not None else None
        if tensor is None:
            raise _not_held(name, slot.tensor, holder_of(name, base.tensors, own_infos(state)))
        regions[name] = _region(name, info, tensor, slot)
    _check_ties(regions, base)
    unknown = sorted(names.keys() - base.tensors.keys() - base.aliases.keys())
    if unknown:
        raise RecipeError("names= speaks of a tensor that the base does not have", tensor=unknown[0], path=base.path)
    return ModelTensors(base.tensors, base.aliases, regions, base.path)


def _check_ties(regions: Mapping[str, Region], base: Checkpoint) -> None:
    seen: dict[tuple[int, torch.device], str] = {}
    for name, region in regions.items():
        other = seen.setdefault((region.memory.data_ptr(), region.memory.device), name)
        if other != name and region.memory.numel():
            hint = f"Say that one of them does not live in the model: names={{{name!r}: None}}."
            found = f"the memory of {other!r}"
            raise RecipeError("the model ties tensors that the base holds twice", tensor=name, path=base.path, found=found, hint=hint)


def _not_held(name: str, slot: str, holder: str | None) -> RecipeError:
    hint = "Say with names= where it lives, or that it does not live here: names={...: None}."
    found = f"no {slot!r}" + (f"; {holder!r} may hold it fused, but not with the base's elements in any order" if holder else "")
    return RecipeError("the model does not hold a tensor of the base", tensor=name, found=found, hint=hint)


def _region(name: str, info: TensorInfo, tensor: torch.Tensor, slot: Slice) -> Region:
    if dtype_of(tensor) != info.dtype:
        hint = "Load the model in the dtype of the base, or use deltapack.load_model(..., dtype=...)."
        raise RecipeError("the model holds it in another dtype", tensor=name, expected=info.dtype, found=tensor.dtype, hint=hint)
    return region_of(tensor, info.dtype.torch_shape(info.shape), slot.of, slot.into, name=name)


def _own_slots(state: Mapping[str, torch.Tensor], names: Names) -> ModelTensors:
    """Take the model's own tensors as the base's, under the names that the base has for them."""
    renamed = {slot: name for name, slot in names.items() if isinstance(slot, str)}
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    regions: dict[str, Region] = {}
    first: dict[tuple[Any, ...], str] = {}
    for own, tensor in state.items():
        name, dtype = renamed.get(own, own), dtype_of(tensor)
        if dtype is None or names.get(own, own) is None:
            continue
        identity = (tensor.data_ptr(), tensor.device, tuple(tensor.shape), tensor.stride(), dtype)
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        tensors[name] = TensorInfo(name, dtype, dtype.shape_of_torch(tensor.shape), "")
        regions[name] = region_of(tensor, tensor.shape, name=name)
    return ModelTensors(dict(sorted(tensors.items())), aliases, regions)
