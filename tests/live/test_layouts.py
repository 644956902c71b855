"""Live models whose tensors lie in another layout than the base's: fused experts take packs of separate ones, what cannot be is refused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import Model, Tensor, cast, moved, random_tensor, read_model, write_file

import deltapack
from deltapack.errors import BaseMismatchError, RecipeError, UnsupportedError

EXPERTS, INNER, WIDTH = 3, 24, 40
OLD, NEW = "model.layers.0.block_sparse_moe", "model.layers.0.mlp"


def separate() -> Model:
    """A layer of Mixtral, as its checkpoint has it."""
    made = itertools.product(range(EXPERTS), (("w1", (INNER, WIDTH)), ("w3", (INNER, WIDTH)), ("w2", (WIDTH, INNER))))
    base = {f"{OLD}.experts.{e}.{n}.weight": random_tensor(i, shape, "bf16") for i, (e, (n, shape)) in enumerate(made)}
    return base | {f"{OLD}.gate.weight": random_tensor(50, (EXPERTS, WIDTH), "bf16"), "norm.weight": cast(np.ones(WIDTH), "bf16")}


def fused(model: Mapping[str, Tensor], *, turned: bool = False) -> dict[str, torch.Tensor]:
    """The layer as transformers 5 holds it in memory."""

    def bits(expert: int, name: str) -> Any:
        return model[f"{OLD}.experts.{expert}.{name}.weight"].bits

    arrays = {
        f"{NEW}.experts.gate_up_proj": np.stack([np.concatenate([bits(e, "w1"), bits(e, "w3")]) for e in range(EXPERTS)]),
        f"{NEW}.experts.down_proj": np.stack([bits(e, "w2") for e in range(EXPERTS)]),
    }
    arrays = {name: array.swapaxes(1, 2) if turned else array for name, array in arrays.items()}
    arrays |= {f"{NEW}.gate.weight": model[f"{OLD}.gate.weight"].bits, "norm.weight": model["norm.weight"].bits}
    return {name: to_torch(array) for name, array in arrays.items()}


def to_torch(array: Any) -> torch.Tensor:
    """Bits of bf16 as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy()).view(torch.bfloat16)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n].view(torch.int16), other[n].view(torch.int16)) for n in one)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack of separate experts."""
    base = separate()
    write_file(tmp_path / "base.safetensors", base)
    tuned = {name: moved(tensor, 100 + i, 0.01) for i, (name, tensor) in enumerate(base.items())}
    write_file(tmp_path / "tuned.safetensors", tuned)
    recipe = deltapack.Recipe(drop_rate=0.5)
    deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "pack.dpk", recipe=recipe)
    return tmp_path / "pack.dpk"


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("undo", ["log", "copy"])
@pytest.mark.parametrize("turned", [False, True])
def test_fused_experts_take_packs_of_separate_ones(tmp_path: Path, pack: Path, backend: str, undo: Any, turned: bool) -> None:
    """Given the base, every part is found in the fused tensor, changed there and brought back."""
    state = fused(separate(), turned=turned)
    live = deltapack.attach(state, tmp_path / "base.safetensors", backend=backend, undo=undo)
    with live.activate(pack):
        deltapack.apply(tmp_path / "base.safetensors", pack, tmp_path / "out.safetensors")
        assert same(state, fused(read_model(tmp_path / "out.safetensors"), turned=turned))
    assert same(state, fused(separate(), turned=turned))


def test_without_the_base_it_is_said_where_the_tensor_is(pack: Path) -> None:
    live = deltapack.attach(fused(separate()))
    with pytest.raises(UnsupportedError, match=r"gate_up_proj.*attach\(model, base\)"):
        live.activate(pack)


def test_a_model_that_is_another_is_not_taken_for_the_base(tmp_path: Path, pack: Path) -> None:
    """No order of parts has the base's elements; or only its first rows."""
    other = {name: random_tensor(70 + i, tensor.shape, "bf16") for i, (name, tensor) in enumerate(separate().items())}
    with pytest.raises(RecipeError, match="not with the base's elements in any order"):
        deltapack.attach(fused(other), tmp_path / "base.safetensors")
    state = fused(separate())
    state[f"{NEW}.experts.gate_up_proj"][1, 5, 7] += 1
    live = deltapack.attach(state, tmp_path / "base.safetensors")
    with pytest.raises(BaseMismatchError, match="R12"):
        live.activate(pack)


def test_packs_of_the_layout_that_the_model_has(tmp_path: Path, pack: Path) -> None:
    """A pack whose fine-tune has the model's layout works on the model by itself; on one of the base's layout it is refused."""
    layout = {name: Tensor("bf16", tensor.view(torch.int16).numpy().view(np.uint16)) for name, tensor in fused(separate()).items()}
    tuned = write_file(tmp_path / "fused.safetensors", {name: moved(tensor, 5, 0.01) for name, tensor in layout.items()})
    deltapack.compress(tmp_path / "base.safetensors", tuned, tmp_path / "fused.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    deltapack.apply(tmp_path / "base.safetensors", tmp_path / "fused.dpk", tmp_path / "out.safetensors")
    wanted = {name: to_torch(tensor.bits) for name, tensor in read_model(tmp_path / "out.safetensors").items()}
    for backend in ("cpu", "torch"):
        state = fused(separate())
        live = deltapack.attach(state, backend=backend, names={f"{OLD}.gate.weight": f"{NEW}.gate.weight"})
        with live.activate(tmp_path / "fused.dpk"):
            assert same(state, wanted)
        assert same(state, fused(separate())) and live.notes == []
    plain = {name: to_torch(tensor.bits) for name, tensor in separate().items()}
    for model, base in ((plain, None), (plain, tmp_path / "base.safetensors"), (fused(separate()), tmp_path / "base.safetensors")):
        with pytest.raises(UnsupportedError, match="of a fine-tune in another layout") as caught:
            deltapack.attach(model, base).activate(tmp_path / "fused.dpk")
        assert caught.value.tensor == f"{NEW}.experts.down_proj"
    loaded = deltapack.load_state_dict(tmp_path / "base.safetensors", tmp_path / "fused.dpk")
    assert same(loaded, wanted)
