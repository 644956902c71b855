"""Packs in the memory of devices and on live models: torch, and Triton's interpreter, against the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import deltapack
from fuzz.bundles import Bundle
from fuzz.interpreting import check_addresses
from fuzz.protocol import Finding, Scratch, Target
from fuzz.targets.vectors import PACK_NAME, change, elements_declared, seeds_of

__all__ = ["DEVICE", "LIVE"]

_MOST = 1 << 13
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def bits_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors in a form that can be compared."""
    out = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().flatten()
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        out[name] = str(tensor.dtype), tuple(tensor.shape), raw
    return out


def small(scratch: Scratch, path: Path) -> bool:
    """Whether a pack can be opened and is small."""
    done, pack = scratch.attempt("open", lambda: deltapack.open_pack(path))
    if not done:
        return False
    with pack:
        if elements_declared(pack.index) > _MOST:
            scratch.note("open: large")
            return False
    return True


def check_device(scratch: Scratch) -> None:
    """Every backend gives the CPU's bits, or refuses what it refuses; no kernel touches memory beside its buffers."""
    path, base = scratch.inputs / PACK_NAME, scratch.inputs / "base"
    if not small(scratch, path):
        return
    backends = ("cpu", "torch", "triton") if check_addresses() else ("cpu", "torch")
    for weight, verify in ((1.0, True), (0.5, False)):
        found: dict[str, tuple[bool, Any]] = {}
        for backend in backends:
            options: dict[str, Any] = {"device": "cpu", "backend": backend, "verify": verify, "workers": 1}
            done, result = scratch.attempt(f"{backend} {weight}", deltapack.load_state_dict, base, {path: weight}, **options)
            found[backend] = done, bits_of(result) if done else result
        first, expected = found["cpu"]
        for backend, (done, result) in found.items():
            if done != first:
                raise Finding(f"{backend} and cpu differ: {done} {first}\n{result}\n{expected}")
            if done and result != expected:
                raise Finding(f"{backend} gives other bits than cpu")


def check_live(scratch: Scratch) -> None:
    """A model takes a pack and gives it back, bit for bit; one that is refused leaves the model as it was."""
    path, base = scratch.inputs / PACK_NAME, scratch.inputs / "base"
    if not small(scratch, path):
        return
    try:
        tensors = load_file(base / "model.safetensors")
    except (SafetensorError, KeyError):  # a type that torch does not have
        scratch.note("base: no tensors of torch")
        return
    before, results = bits_of(tensors), []
    for backend in ("cpu", "torch"):
        model = {name: tensor.clone() for name, tensor in tensors.items()}
        done, live = scratch.attempt(f"attach {backend}", deltapack.attach, model, backend=backend, workers=1)
        if not done:
            return
        with closing(live):
            active, error = scratch.attempt(f"activate {backend}", live.activate, {path: 0.5})
            if not active and bits_of(model) != before:
                raise Finding(f"{backend}: a pack was refused and changed the model: {error}")
            results.append((active, bits_of(model)))
            if active:
                live.deactivate()
                if bits_of(model) != before:
                    raise Finding(f"{backend}: the base did not come back")
                scratch.attempt(f"step {backend}", live.step, path)
    if results[0] != results[1]:
        raise Finding("cpu and torch leave other bits in a model")


def seeds(folder: Path) -> Sequence[Bundle]:
    """Small vectors."""
    return seeds_of(folder, most=1 << 13)


def fewer_seeds(folder: Path) -> Sequence[Bundle]:
    """Vectors with terms or exact tensors, one of five: the interpreter takes a second for each."""
    kinds = {"delta", "grown", "shrunk", "exact"}
    return seeds_of(folder, lambda name, index: bool(kinds & {entry["kind"] for entry in index["tensors"]}), most=1 << 11)[::5]


DEVICE = Target(
    "device",
    "packs decoded by torch and by Triton's kernels, addresses checked",
    fewer_seeds,
    partial(change, ("blobs", "blobs", "terms", "index")),
    check_device,
    ("deltapack.device",),
    "torch",
    slow=True,
)
LIVE = Target(
    "live",
    "packs on a model in memory",
    seeds,
    partial(change, ("blobs", "terms", "index")),
    check_live,
    ("deltapack.live", "deltapack.device"),
    "activate",
)
