"""Exact packs on a live model: decoded where its tensors are, and undone there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import TORCH, Model, Tensor, bytes_of, edited, moved, random_tensor, whole
from support.fixtures import PackOf
from support.interpreting import DEVICE

import deltapack
from deltapack.errors import FormatError
from deltapack.format.reader import PackReader
from deltapack.live.cpu_engine import HostEngine

pytestmark = pytest.mark.slow

BACKENDS = ["torch", "triton"] if torch.cuda.is_available() else ["cpu", "torch", "triton"]


def to_torch(tensor: Tensor) -> torch.Tensor:
    integer = {1: "u1", 2: "i2", 4: "i4", 8: "i8"}[tensor.bits.dtype.itemsize]
    found = torch.from_numpy(tensor.bits.reshape(-1).view(integer).copy())
    return (found.view(TORCH[tensor.dtype]) if tensor.dtype in TORCH else found).reshape(tensor.shape).to(DEVICE)


def holds(state: dict[str, torch.Tensor], model: Model) -> bool:
    return all(bytes_of(state[name]) == tensor.raw for name, tensor in model.items())


def some_base() -> Model:
    dtypes = ("bf16", "f16", "f32", "f64", "f8_e4m3fn")
    base = {f"{dtype}.weight": random_tensor(seed, (20, 7), dtype) for seed, dtype in enumerate(dtypes)}
    base["bf16.weight"] = random_tensor(7, (10, 7), "bf16")
    return base | {"ids": whole("i64", np.arange(90)), "same": random_tensor(3, (9, 7), "bf16")}


def nudged(tensor: Tensor, seed: int) -> Tensor:
    """The tensor with its bits moved a little, as a fine-tune would."""
    bits = tensor.bits.view(f"<u{tensor.bits.dtype.itemsize}")
    steps = np.random.default_rng(seed).integers(0, 3, bits.shape).astype(bits.dtype)
    return Tensor(tensor.dtype, (bits + steps).view(tensor.bits.dtype))


def tuned(base: Model, seed: int) -> Model:
    """All but one tensor moved, but for one of them in one element only: the interpreter takes a while for each."""
    few = {name: edited(tensor, seed, 3) for name, tensor in base.items() if name != "same"}
    return base | few | {"bf16.weight": nudged(base["bf16.weight"], seed)}


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of tensors that the host restores."""
    names: list[str] = []
    switch = HostEngine.switch

    def watched(self: HostEngine, undo: Any, works: Sequence[Any], mode: Any, done: Any) -> None:
        names.extend(work.job.name for work in works)
        switch(self, undo, works, mode, done)

    monkeypatch.setattr(HostEngine, "switch", watched)
    return names


MODES = [(backend, undo) for backend in BACKENDS for undo in ("auto", "copy", "log") if undo == "auto" or backend != "triton"]
"""What is saved, and how, is the same code for both engines; the interpreter is slow."""


@pytest.mark.parametrize(("backend", "undo"), MODES)
def test_activate_switch_undo(pack_of: PackOf, hosted: list[str], backend: str, undo: Any) -> None:
    """Between two exact packs and a lossy one, in every order, with one plan each."""
    base = some_base()
    states = {"one": tuned(base, 1), "two": tuned(base, 2)}
    packs = {name: pack_of(base, model, name, exact=".*") for name, model in states.items()}
    for pack in packs.values():
        with PackReader(pack) as reader:
            assert {entry.name for entry in reader.index.entries if entry.partner is not None} == base.keys() - {"same"}
    floats = {name: moved(tensor, 5) if ".weight" in name else tensor for name, tensor in base.items()}
    lossy = pack_of(base, floats, "lossy", drop_rate=0.5)
    state = {name: to_torch(tensor) for name, tensor in base.items()}
    live = deltapack.attach(state, backend=backend, undo=undo)
    for name in ("one", "two", "lossy", "one"):
        live.activate(packs.get(name, lossy))
        assert name == "lossy" or holds(state, states[name])
        assert live.undo_bytes > 0
    assert (set(hosted) == {"ids", *(name for name in base if ".weight" in name)}) is (backend == "cpu")
    assert backend == "cpu" or hosted == []
    with live.activate({packs["two"]: 1.0}):
        assert holds(state, states["two"])
    assert holds(state, states["one"])
    live.deactivate()
    assert holds(state, base) and live.undo_bytes == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_sum_is_made_by_the_host(pack_of: PackOf, merged: Any, backend: str) -> None:
    """Half of an exact pack is a difference like another."""
    base = {name: tensor for name, tensor in some_base().items() if name != "ids"}
    pack = pack_of(base, {name: moved(tensor, 1) for name, tensor in base.items()}, exact=".*")
    state = {name: to_torch(tensor) for name, tensor in base.items()}
    live = deltapack.attach(state, backend=backend)
    live.activate({pack: 0.5})
    assert holds(state, merged([pack], weights=[0.5]))
    live.deactivate()
    assert holds(state, base)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_leaves_the_base(pack_of: PackOf, backend: str, tmp_path: Path) -> None:
    """Each byte of the chunk of a tensor, as long as the pack opens: the model holds the base, or what was packed."""
    base = {"w": random_tensor(1, (100,), "bf16")}
    after = {"w": nudged(base["w"], 1)}
    data = pack_of(base, after, exact=".*").read_bytes()
    errors = 0
    for place in range(20, 90, 14):
        broken = tmp_path / f"broken{place}.dpk"
        broken.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        state = {"w": to_torch(base["w"])}
        live = deltapack.attach(state, backend=backend)
        try:
            live.activate(broken)
        except FormatError:
            errors += 1
        assert holds(state, base if not live.current else after)
    assert errors
