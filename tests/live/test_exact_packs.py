"""Exact packs on a live model: the fine-tune's bits, the base's bits again, and mixes with lossy packs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import TORCH, Model, Tensor, bytes_of, edited, moved, random_tensor, read_file, tuned_model, whole, write_file

import deltapack
from deltapack import Recipe
from deltapack.device.model_tensors import Slice
from deltapack.errors import ChecksumError, UnsupportedError

BASE: Model = {
    "w": random_tensor(1, (70, 41), "bf16"),
    "v": random_tensor(2, (300,), "f32"),
    "h": random_tensor(3, (30, 20), "f16"),
    "ids": whole("i64", np.arange(90)),
    "odd": Tensor("f32", np.array([0, 1 << 31, 0x7FC00001, 0xFF800000, 1], "<u4").view("<f4")),
}
ODD = Tensor("f32", np.array([1 << 31, 0, 0xFFC00002, 0x7F800000, 0x80000001], "<u4").view("<f4"))
PLAIN = {name: tensor for name, tensor in BASE.items() if name != "odd"}
ONE: Model = tuned_model(PLAIN, 5) | {"ids": edited(BASE["ids"], 3, 1000), "odd": ODD}
OTHER: Model = tuned_model(PLAIN, 8) | {"odd": BASE["odd"]}


def to_torch(tensor: Tensor) -> torch.Tensor:
    integer = {1: "u1", 2: "i2", 4: "i4", 8: "i8"}[tensor.bits.dtype.itemsize]
    flat = torch.from_numpy(tensor.bits.reshape(-1).view(integer).copy())
    return flat.view(TORCH.get(tensor.dtype, flat.dtype)).reshape(tensor.shape)


def holds(state: Mapping[str, torch.Tensor], model: Mapping[str, Tensor]) -> bool:
    return all(bytes_of(state[name]) == tensor.raw for name, tensor in model.items())


def packed(folder: Path, name: str, base: Model, tuned: Model, recipe: Recipe) -> Path:
    paths = write_file(folder / "base.safetensors", base), write_file(folder / f"{name}.safetensors", tuned)
    deltapack.compress(*paths, folder / f"{name}.dpk", recipe=recipe)
    return folder / f"{name}.dpk"


def merged(packs: Mapping[Path, float]) -> Model:
    folder = next(iter(packs)).parent
    out = folder / "merged.safetensors"
    deltapack.merge(folder / "base.safetensors", list(packs), out, weights=list(packs.values()), force=True)
    return read_file(out)


@pytest.mark.parametrize("undo", ["auto", "copy", "log"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_there_and_back(tmp_path: Path, backend: str, undo: Any) -> None:
    one = packed(tmp_path, "one", BASE, ONE, Recipe(exact=True))
    other = packed(tmp_path, "other", BASE, OTHER, Recipe(exact=True))
    lossy = packed(tmp_path, "lossy", BASE, OTHER, Recipe(drop_rate=0.5))
    state = {name: to_torch(tensor) for name, tensor in BASE.items()}
    live = deltapack.attach(state, backend=backend, undo=undo)
    for pack, model in ((one, ONE), (other, OTHER), (one, ONE)):
        live.activate(pack)
        assert holds(state, model)
    for packs in ({one: 0.5}, {one: 1.0, lossy: 0.25}, {lossy: 1.0}, {other: -1.0, one: 2.0}):
        live.activate(packs)
        assert holds(state, merged(packs))
    with live.activate(one):
        assert holds(state, ONE)
    live.deactivate()
    assert holds(state, BASE) and live.undo_bytes == 0


def test_a_damaged_pack_leaves_the_model_alone(tmp_path: Path) -> None:
    one = packed(tmp_path, "one", BASE, ONE, Recipe(exact=True))
    with deltapack.open_pack(one) as opened:
        end = opened["w"].entry.exact[0].blob.end
    data = bytearray(one.read_bytes())
    data[end - 1] ^= 1
    one.write_bytes(data)
    state = {name: to_torch(tensor) for name, tensor in BASE.items()}
    live = deltapack.attach(state, backend="cpu")
    with pytest.raises(ChecksumError):
        live.activate(one)
    assert holds(state, BASE) and live.current == {}


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_slice_is_refused(tmp_path: Path, weight: float) -> None:
    """An element's bits are found by all elements of the base before it; a rank that has every second one cannot know them."""
    base = {"down": random_tensor(4, (300, 50), "bf16"), "norm": random_tensor(5, (48,), "bf16")}
    exact = packed(tmp_path, "exact", base, tuned_model(base), Recipe(exact=True))
    state = {"down": to_torch(base["down"])[:, 25:].contiguous(), "norm": to_torch(base["norm"])}
    before = {name: bytes_of(tensor) for name, tensor in state.items()}
    names: dict[str, str | Slice | None] = {"down": Slice("down", of=(slice(None), slice(25, 50)))}
    live = deltapack.attach(state, tmp_path / "base.safetensors", names=names, backend="cpu")
    with pytest.raises(UnsupportedError, match="cannot be made of a slice of its base") as caught:
        live.activate({exact: weight})
    assert caught.value.tensor == "down"
    assert {name: bytes_of(tensor) for name, tensor in state.items()} == before
    norm_only = packed(tmp_path, "norm", base, base | {"norm": moved(base["norm"], 3)}, Recipe(exact=True))
    live.activate(norm_only)
    assert bytes_of(state["norm"]) == moved(base["norm"], 3).raw


@pytest.mark.parametrize("how", ["rows", "type"])
def test_other_shapes_and_types_are_built_anew(tmp_path: Path, how: str) -> None:
    """A live model keeps its tensors; `load_state_dict` makes others."""
    h = moved(BASE["h"], 4, dtype="f32") if how == "type" else Tensor("f16", np.concatenate([BASE["h"].bits, BASE["h"].bits[:3]]))
    tuned = ONE | {"h": h}
    pack = packed(tmp_path, "x", BASE, tuned, Recipe(exact=True))
    state = {name: to_torch(tensor) for name, tensor in BASE.items()}
    live = deltapack.attach(state, backend="cpu")
    with pytest.raises(UnsupportedError, match="load_model"):
        live.activate(pack)
    assert holds(state, BASE)
    for backend in ("cpu", "torch"):
        loaded = deltapack.load_state_dict(tmp_path / "base.safetensors", pack, backend=backend)
        assert loaded.keys() == tuned.keys() and holds(loaded, tuned)
        assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {name: tensor.shape for name, tensor in tuned.items()}


@pytest.mark.parametrize("packs", [{"one": 0.5}, {"one": 1.0, "lossy": 0.5}])
def test_loading_gives_what_merging_gives(tmp_path: Path, packs: Mapping[str, float]) -> None:
    made = {
        "one": packed(tmp_path, "one", BASE, ONE, Recipe(exact=True)),
        "lossy": packed(tmp_path, "lossy", BASE, OTHER, Recipe(drop_rate=0.5)),
    }
    chosen = {made[name]: weight for name, weight in packs.items()}
    assert holds(deltapack.load_state_dict(tmp_path / "base.safetensors", chosen), merged(chosen))


def test_a_module_whose_matrices_lie_the_other_way_round(tmp_path: Path) -> None:
    """Strides are the model's own affair: elements are read and written by their places in the pack's tensor."""
    one = packed(tmp_path, "one", BASE, ONE, Recipe(exact=True))
    state = {name: to_torch(tensor) for name, tensor in BASE.items()}
    turned = state["w"].t().contiguous().t()
    assert not turned.is_contiguous()
    live = deltapack.attach(state | {"w": turned}, backend="cpu")
    live.activate(one)
    assert bytes_of(turned) == ONE["w"].raw
    live.deactivate()
    assert bytes_of(turned) == BASE["w"].raw


def test_a_language_model_is_the_fine_tune(tmp_path: Path) -> None:
    """With tied embeddings: live, and loaded with new tokens."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    packs = []
    for name in ("same", "more"):
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.01)
        base.save_pretrained(tmp_path / name)
        packs.append(tmp_path / f"{name}.dpk")
        deltapack.compress(tmp_path / "base", tmp_path / name, packs[-1], recipe=Recipe(exact=True))
        base.resize_token_embeddings(101)
    ids = torch.arange(20)[None]
    same, more = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("same", "more"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    loaded = deltapack.load_model(tmp_path / "base", packs[1], device="cpu")
    with torch.inference_mode():
        plain = model(ids).logits
        with deltapack.attach(model, backend="cpu").activate(packs[0]):
            assert torch.equal(model(ids).logits, same(ids).logits)
        assert torch.equal(model(ids).logits, plain)
        assert torch.equal(loaded(ids).logits, more(ids).logits) and len(loaded.lm_head.weight) == 101
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
