"""Packs of factors on a live model and in direct loading, on the CPU: the bits of a restored checkpoint, and the base's again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import CHUNK, TORCH, Model, Tensor, bytes_of, cast, random_tensor, read_file
from support.factor_packs import factor_pack

import deltapack

pytestmark = pytest.mark.slow


def to_torch(tensor: Tensor) -> torch.Tensor:
    raw = torch.from_numpy(tensor.bits.reshape(-1).view(f"i{tensor.bits.itemsize}").copy())
    return raw.view(TORCH[tensor.dtype]).reshape(tensor.shape)


def holds(state: dict[str, torch.Tensor], model: Model) -> bool:
    return all(bytes_of(state[name]) == tensor.raw for name, tensor in model.items())


def some_base() -> Model:
    return {
        "bf16.weight": random_tensor(1, (70, 41), "bf16"),
        "f32.weight": random_tensor(2, (70, 41), "f32"),
        "f16.weight": random_tensor(3, (70, 41), "f16"),
        "long.weight": random_tensor(4, (CHUNK // 1000 + 9, 1000), "bf16"),
        "bias": random_tensor(5, (41,), "bf16"),
    }


def tuned(base: Model, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    out = dict(base)
    for name, tensor in base.items():
        if name != "bias":
            rows, columns = tensor.shape
            change = 0.1 * np.outer(rng.normal(0, 1, rows), rng.normal(0, 1, columns)) + rng.normal(0, 0.01, tensor.shape)
            out[name] = cast(tensor.f64 + change, tensor.dtype)
    return out


@pytest.fixture
def family(tmp_path: Path) -> tuple[Model, list[Path]]:
    base = some_base()
    return base, [
        factor_pack(tmp_path, base, tuned(base, 1), "one", rank=2),
        factor_pack(tmp_path, base, tuned(base, 2), "two", rank=5, bits=8, residual=False),
    ]


def merged(folder: Path, packs: dict[Path, float]) -> Model:
    out = folder / "merged.safetensors"
    deltapack.merge(folder / "base.safetensors", list(packs), out, weights=list(packs.values()), force=True)
    return read_file(out)


@pytest.mark.parametrize("undo", ["auto", "copy", "log"])
def test_activate_mix_switch_undo(tmp_path: Path, family: tuple[Model, list[Path]], undo: Any) -> None:
    base, (one, two) = family
    state = {name: to_torch(tensor) for name, tensor in base.items()}
    live = deltapack.attach(state, backend="cpu", undo=undo)
    for packs in ({one: 1.0}, {two: -0.5}, {one: 0.7, two: 1.5}, {one: 1.0}):
        live.activate(packs)
        assert holds(state, merged(tmp_path, packs))
    live.deactivate()
    assert holds(state, base)
    assert live.undo_bytes == 0


def test_a_change_everywhere_is_undone_by_a_copy(family: tuple[Model, list[Path]]) -> None:
    base, (one, _) = family
    state = {name: to_torch(tensor) for name, tensor in base.items()}
    live = deltapack.attach(state, backend="cpu")
    live.activate({one: 1.0})
    changed = sum(len(tensor.raw) for name, tensor in base.items() if name != "bias")
    assert live.undo_bytes == changed


@pytest.mark.parametrize("dtype", [None, "f32"])
def test_loading_directly(tmp_path: Path, family: tuple[Model, list[Path]], dtype: str | None) -> None:
    _, (one, two) = family
    for packs in ({one: 1.0}, {two: 2.0}, {one: 0.5, two: 1.0}):
        out = tmp_path / "merged.safetensors"
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        deltapack.merge(tmp_path / "base.safetensors", list(packs), out, weights=list(packs.values()), force=True, **options)
        state = deltapack.load_state_dict(tmp_path / "base.safetensors", packs, backend="cpu", device="cpu", **options)
        assert holds(state, read_file(out))
