"""A model of a serving engine as the base of packs: its own loader says where each tensor of the checkpoint lives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import torch

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.device.model_tensors import ModelTensors, state_of
from deltapack.device.regions import Region, read_chunk
from deltapack.device.torch_kernels import BITS
from deltapack.errors import BaseMismatchError
from deltapack.format.digest import CHUNK
from deltapack.live.probing import LoadWeights, Written, memory_of, probe_loader
from deltapack.live.wanted import loaded_names

__all__ = ["find_served_tensors"]

_MOST_PLACES = 4096
"""Places of one tensor: more of them are no slices of it, but some other layout."""


def find_served_tensors(model: torch.nn.Module, base: Checkpoint, load: LoadWeights) -> ModelTensors:
    """Find where the base's tensors live in a model that a loader of its own has filled, and prove it by the base's elements.

    Of a tensor that lies whole in one place the first chunk is compared here, and all of it with a pack's digest before it is changed; of
    slices and copies everything is compared here. What does not hold the base's elements is refused by name once a pack changes it.

    Args:
        model: The model, or what this process holds of it.
        base: The checkpoint that it was loaded from.
        load: Its loader; it is run without an effect on the model.

    Raises:
        BaseMismatchError: No tensor of the model holds the base's elements.
        UnsupportedError: The loader cannot be followed.
    """
    probes, refused = _probes(base)
    probed = probe_loader(load, probes, _held(model), model)
    refused |= {base.aliases.get(name, name): why for name, why in probed.refused.items()}
    refused |= {name: why for name, why in _refused_by_module(model, probed.written, base).items() if name not in refused}
    places: dict[str, list[Region]] = {}
    for one in probed.written:
        name = base.aliases.get(one.name, one.name)
        found = _regions(one, base.tensors[name].numel)
        if found is None:
            refused.setdefault(name, "the model holds it in an order that is none of rows and columns")
        elif name not in refused:
            places.setdefault(name, []).extend(found)
    places = {name: _joined(found) for name, found in _last_writers(places).items() if name not in refused}
    for name, regions in list(places.items()):
        if not _is_proved(base, base.tensors[name], regions):
            refused[name] = (
                "the model holds other elements than the base: it was changed after loading (repacked, quantised), or is another one"
            )
            del places[name]
    if base.tensors and not places:
        name = min(refused, default=min(base.tensors))
        why = refused.get(name, "its loader takes no tensor of that name")
        hint = "Give the very checkpoint that the server was started with, in its own dtype."
        raise BaseMismatchError("the model holds nothing of the base", path=base.path, tensor=name, found=why, hint=hint)
    first = {name: regions[0] for name, regions in places.items()}
    further = {name: tuple(regions[1:]) for name, regions in places.items() if len(regions) > 1}
    return ModelTensors(base.tensors, base.aliases, first, base.path, further=further, refused=refused, elements=base)


def _probes(base: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a tensor without memory for each name of the checkpoint, and those of which torch has no type."""
    probes, refused = dict[str, torch.Tensor](), dict[str, str]()
    for name in loaded_names(base):
        info = base.tensors[base.aliases.get(name, name)]
        dtype = getattr(torch, info.dtype.torch, None) if info.dtype.torch else None
        if dtype is None:
            refused[info.name] = f"torch has no type for it ({info.dtype})"
        else:
            probes[name] = torch.empty(info.dtype.torch_shape(info.shape), dtype=dtype, device="meta")
    return probes, refused


def _held(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers that have memory, those that are not saved among them."""
    state_of(dict(model.named_parameters()))
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def _refused_by_module(model: torch.nn.Module, written: list[Written], base: Checkpoint) -> Mapping[str, str]:
    """Return tensors of modules that hold something of their own beside parameters and buffers: it was made of these after loading.

    Latent attention of vLLM and SGLang is such a module (`W_UV`, `W_UK_T`): a pack would change the weight, and not what was made of it.
    """
    own = {memory_of(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}
    stale: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and _is_made(value, name, own):
                stale |= {memory_of(tensor): f"{path}.{name}" for tensor in module.parameters()}
    return {
        base.aliases.get(one.name, one.name): f"{stale[memory_of(one.target)]!r} was made of it after loading"
        for one in written
        if memory_of(one.target) in stale
    }


def _is_made(value: torch.Tensor, name: str, own: set[int]) -> bool:
    return value.dim() > 1 and value.is_floating_point() and "cache" not in name and memory_of(value) not in own


def _regions(one: Written, numel: int) -> list[Region] | None:
    """Return the places of elements that a loader writes in one go; none where these are no rows and columns."""
    source, target = one.source, one.target
    source, target = source.squeeze(), target.squeeze()
    if source.shape != target.shape:
        return None
    axes = sorted(zip(source.shape, source.stride(), target.stride(), strict=True), key=lambda axis: -axis[1])
    axes = [axis for axis in axes if axis[0] > 1]
    if any(ours == 0 or theirs == 0 for _, ours, theirs in axes):
        return None
    merged: list[tuple[int, int, int]] = []
    for size, ours, theirs in axes:
        if merged and merged[-1][1] == size * ours and merged[-1][2] == size * theirs:
            size *= merged.pop()[0]
        merged.append((size, ours, theirs))
    if not merged or merged[-1][1] != 1:
        merged.append((1, 1, 1))
    *outer, columns = merged
    rows = outer.pop() if outer else (1, numel, columns[0] * columns[2])
    if math.prod(size for size, _, _ in outer) > _MOST_PLACES or numel % rows[1]:
        return None
    bits, regions = target.view(BITS[target.element_size()]), []
    for place in itertools.product(*(range(size) for size, _, _ in outer)):
        ours = int(source.storage_offset()) + sum(step * axis[1] for step, axis in zip(place, outer, strict=True))
        theirs = int(bits.storage_offset()) + sum(step * axis[2] for step, axis in zip(place, outer, strict=True))
        memory = bits.as_strided((rows[0], columns[0]), (rows[2], columns[2]), theirs)
        top, left = divmod(ours, rows[1])
        if left + columns[0] > rows[1]:
            return None
        regions.append(_flat(Region(memory, rows[1], top, left), numel))
    return regions


def _flat(region: Region, numel: int) -> Region:
    """Return a region that is one run of elements as such."""
    return region if region.sliced else Region(region.memory.reshape(1, -1), max(1, numel), 0, region.start)


def _last_writers(places: Mapping[str, list[Region]]) -> dict[str, list[Region]]:
    """Leave out what the loader wrote over with another tensor: of tied tensors that the checkpoint holds twice, the last one counts."""
    owner = {region.key: name for name, regions in places.items() for region in regions}
    kept = {name: [region for region in regions if owner[region.key] == name] for name, regions in places.items()}
    return {name: regions for name, regions in kept.items() if regions}


def _joined(regions: list[Region]) -> list[Region]:
    """Join runs that follow one another both in the tensor and in memory, and put the largest place first."""
    out: list[Region] = []
    distinct = {(region.key, region.start): region for region in regions}.values()
    for region in sorted(distinct, key=lambda region: (region.sliced, region.start)):
        last = out[-1] if out else None
        if last is not None and not last.sliced and not region.sliced and _follows(last, region):
            memory = last.memory.as_strided((1, last.memory.numel() + region.memory.numel()), (region.memory.numel(), 1))
            out[-1] = Region(memory, last.width, 0, last.start)
        else:
            out.append(region)
    return sorted(out, key=lambda region: -region.memory.numel())


def _follows(one: Region, two: Region) -> bool:
    own, other = one.memory, two.memory
    return one.stop == two.start and memory_of(own) == memory_of(other) and own.storage_offset() + own.numel() == other.storage_offset()


def _is_proved(base: Checkpoint, info: TensorInfo, regions: list[Region]) -> bool:
    """Whether the model holds the base's elements in these places."""
    whole = next((region for region in regions if region.memory.numel() == info.numel), None)
    return all(_holds(base, info, region, chunk) for region, chunk in _to_compare(regions, whole))


def _to_compare(regions: list[Region], whole: Region | None) -> Iterator[tuple[Region, int]]:
    for region in regions:
        for chunk in region.chunks if region is not whole else region.chunks[:1]:
            yield region, chunk


def _holds(base: Checkpoint, info: TensorInfo, region: Region, chunk: int) -> bool:
    wanted = base.read(info.name, chunk * CHUNK, min((chunk + 1) * CHUNK, info.numel))
    return bool(read_chunk(region, info, chunk, around=wanted).tobytes() == wanted.tobytes())
