"""Files of checkpoints that strangers made: safetensors with an index of shards, PyTorch's zip archives and pickles, distributed ones."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from deltapack.checkpoint import open_checkpoint
from fuzz.bundles import Bundle
from fuzz.mutators.containers import changed_pickle, changed_safetensors, changed_zip
from fuzz.mutators.streams import changed_bytes
from fuzz.mutators.values import changed_text
from fuzz.protocol import Finding, Scratch, Target, modules
from fuzz.spec import ROOT

__all__ = ["DISTRIBUTED", "SAFETENSORS", "TORCH", "files_below"]

sys.path.append(str(ROOT / "tests"))  # what makes small checkpoints

_MOST_ELEMENTS = 1 << 20
_WORDS = (
    "weight_map",
    "metadata",
    "total_size",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "../model.safetensors",
    "/model.safetensors",
    "a",
    "b",
    "c",
)


def files_below(folder: Path) -> Bundle:
    """The files of a folder as an input."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_all(scratch: Scratch, path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """Open a checkpoint and read all of it, whole and in part; none where it is refused."""
    done, checkpoint = scratch.attempt("open", lambda: open_checkpoint(path))
    if not done:
        return None
    with checkpoint:
        found = {}
        if sum(tensor.numel for tensor in checkpoint.tensors.values()) > _MOST_ELEMENTS:
            scratch.note("open: large")
            return None
        for name, tensor in checkpoint.tensors.items():
            done, elements = scratch.attempt("read", checkpoint.read, name)
            if not done:
                return None
            if elements.nbytes != tensor.numel * tensor.dtype.itemsize:
                raise Finding(f"{tensor.numel} elements read as {elements.nbytes} bytes")
            half = tensor.numel // 2
            done, rest = scratch.attempt("read a part", checkpoint.read, name, half, tensor.numel)
            if done and rest.tobytes() != elements[half:].tobytes():
                raise Finding("a part of a tensor is not what the whole has there")
            found[name] = tensor.dtype.name, tensor.shape, elements.tobytes()
        return found


# ------------------------------------------------------------------------------------------------------ safetensors


def seeds(folder: Path) -> Sequence[Bundle]:
    """One file, shards, types of all kinds, tensors without elements."""
    from support.builders import mixed_model, small_model, write_file, write_folder

    write_folder(folder / "small", small_model())
    write_folder(folder / "mixed", mixed_model())
    (folder / "shards").mkdir()
    parts = list(small_model(3).items())
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, own in zip(names, (dict(parts[::2]), dict(parts[1::2])), strict=True):
        write_file(folder / "shards" / name, own, {"format": "pt"})
    where = {key: names[place % 2] for place, (key, _) in enumerate(parts)}
    size = sum(len(tensor.raw) for _, tensor in parts)
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}))
    (folder / "shards" / "config.json").write_text("{}")
    return [files_below(folder / name) for name in ("small", "mixed", "shards")]


def change(bundle: Bundle, rng: Random) -> Bundle:
    """Change the header of a file, or the index."""
    name = rng.choice([name for name in bundle if name != "config.json"])
    content = bundle[name]
    new = changed_text(content, rng, (*_WORDS, *bundle)) if name.endswith(".json") else changed_safetensors(content, rng)
    return {**bundle, name: new}


def check_safetensors(scratch: Scratch) -> None:
    """What is accepted has the bytes that the specification's reader and the safetensors library find."""
    single = scratch.inputs / "model.safetensors"
    found = read_all(scratch, scratch.inputs)
    if single.exists() and found is not None and not list(scratch.inputs.glob("*.index.json")):
        scratch.note("compared")
        data = single.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        own = {name: data[8 + size + row["data_offsets"][0] : 8 + size + row["data_offsets"][1]] for name, row in header.items()}
        if {name: raw for name, (_, _, raw) in found.items()} != own:
            raise Finding("tensors are not what the header says")


SAFETENSORS = Target(
    "safetensors",
    "headers of safetensors files, indices of shards",
    seeds,
    change,
    check_safetensors,
    modules("checkpoint", "safetensors locate layout"),
    "read",
)

# ---------------------------------------------------------------------------------------------------------- PyTorch


def seeds_torch(folder: Path) -> Sequence[Bundle]:
    """State dicts as `torch.save` writes them: views, shared memory, other objects beside tensors; zip archives and the older form."""
    torch.manual_seed(0)
    whole = torch.randn(6, 8)
    states: list[dict[str, Any]] = [
        {"a": whole, "b": torch.arange(5), "c": whole.to(torch.bfloat16), "d": torch.tensor(True), "e": torch.zeros(0, 3)},
        {"a": whole, "view": whole[1:3], "t": whole.t(), "tied": whole, "step": whole[:, ::2]},
        {"model": {"a": whole, "x": {"y": torch.ones(2, dtype=torch.float8_e4m3fn)}}, "epoch": 3, "args": [1, 2.5, "s", None, (1, 2)]},
        {"a": torch.nn.Parameter(whole), "b": torch.randn(3, dtype=torch.complex64), "c": torch.tensor(3, dtype=torch.uint8)},
    ]
    found = []
    for state in states:
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(state, out, _use_new_zipfile_serialization=zipped)
            found.append({"pytorch_model.bin": out.getvalue()})
    return found


def change_torch(bundle: Bundle, rng: Random) -> Bundle:
    """Change members of the archive, operations of the pickle; of the older form the bytes."""
    (name,) = bundle
    data = bundle[name]
    if zipfile.is_zipfile(io.BytesIO(data)):
        return {name: changed_zip(data, rng)}
    return {name: changed_pickle(data, rng) if rng.random() < 0.5 else changed_bytes(data, rng)}


def check_torch(scratch: Scratch) -> None:
    """What is accepted, torch reads too, with the same elements."""
    path = scratch.inputs / "pytorch_model.bin"
    found = read_all(scratch, path)
    if not found or path.stat().st_size > 1 << 16:
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: torch says no
        scratch.note(f"torch: {type(error).__name__}")
        return
    tensors = dict(_tensors_in(state))
    for name, (_, shape, raw) in found.items():
        other = tensors.get(name)
        if other is None or tuple(other.shape) != shape:
            scratch.note("torch: names differ")
            continue
        bits = np.asarray(other.detach().contiguous().flatten().view(torch.uint8) if other.numel() else torch.zeros(0, dtype=torch.uint8))
        if bits.tobytes() != raw:
            raise Finding("other elements than torch finds")
        scratch.note("torch: same")


def _tensors_in(state: Any) -> list[tuple[str, torch.Tensor]]:
    waiting, found = [state] if isinstance(state, dict) else [], []
    while waiting:
        own = waiting.pop()
        for key, value in own.items():
            if isinstance(value, torch.Tensor):
                found.append((str(key), value))
            elif isinstance(value, dict) and len(found) < 1000:
                waiting.append(value)
    return found


TORCH = Target(
    "torch-file",
    "PyTorch's .bin: zip archives, pickles",
    seeds_torch,
    change_torch,
    check_torch,
    modules("checkpoint", "torchfile torchzip torchpiece"),
    "read",
)

# ------------------------------------------------------------------------------------------------------ distributed


def seeds_distributed(folder: Path) -> Sequence[Bundle]:
    """Two ranks, tensors cut into boxes; and one that is saved by a process alone."""
    from support import distributed

    state = {"a": torch.arange(48.0).reshape(6, 8), "b": torch.arange(5, dtype=torch.int16), "c": torch.ones(3, dtype=torch.bfloat16)}
    boxes = {"a": [((0, 0), (3, 8)), ((3, 0), (3, 5)), ((3, 5), (3, 3))]}
    distributed.parts_of(folder / "cut", state, boxes).write(folder / "cut")
    with suppress(RuntimeError):
        distributed.save_alone({"model": state}, folder / "alone")
    return [files_below(path) for path in (folder / "cut", folder / "alone") if path.is_dir()]


def change_distributed(bundle: Bundle, rng: Random) -> Bundle:
    """Change what the metadata says, or a file that it speaks of."""
    name = ".metadata" if rng.random() < 0.75 else rng.choice(list(bundle))
    data = bundle[name]
    return {**bundle, name: changed_pickle(data, rng) if name == ".metadata" else changed_zip(data, rng)}


def check_distributed(scratch: Scratch) -> None:
    """It is read or refused."""
    read_all(scratch, scratch.inputs)


DISTRIBUTED = Target(
    "distributed",
    "checkpoints of torch.distributed: metadata and files",
    seeds_distributed,
    change_distributed,
    check_distributed,
    modules("checkpoint", "distributed pickled pickle_stack pickle_values"),
    "read",
)
