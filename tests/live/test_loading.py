"""Base and packs straight into memory: the bits that merge writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import CHUNK, Model, Tensor, bytes_of, mixed_model, moved, random_tensor, tuned_model, whole
from support.fixtures import Merged, PackOf
from support.interpreting import DEVICE

import deltapack
from deltapack.errors import BaseMismatchError, ChecksumError, LimitError, MergeConflictError, RecipeError

BACKENDS = ["cpu", "torch", "triton"]


def same(state: dict[str, torch.Tensor], model: Model) -> bool:
    raw = {name: bytes_of(tensor) for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return raw == {name: tensor.raw for name, tensor in model.items()} and shapes == {name: tensor.shape for name, tensor in model.items()}


@pytest.fixture
def base() -> Model:
    return mixed_model()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [None, "f32", torch.bfloat16])
def test_tensors(base: Model, pack_of: PackOf, merged: Merged, backend: str, dtype: Any) -> None:
    grown: dict[str, Tensor] = tuned_model(base, 3) | {"c": random_tensor(3, (44, 9), "f16"), "new": random_tensor(8, (7,))}
    grown["c"].bits[:40] = moved(base["c"], 1).bits
    packs = [pack_of(base, tuned_model(base, 1), "one", drop_rate=0.5), pack_of(base, grown, "two", drop_rate=0.9)]
    where = packs[0].parent / "base.safetensors"
    name = {None: None, "f32": "f32", torch.bfloat16: "bf16"}[dtype]
    for chosen in ({packs[0]: 1.0}, {packs[1]: 0.5, packs[0]: 1.5}, {packs[1]: 1.0}):
        state = deltapack.load_state_dict(where, chosen, device=DEVICE, dtype=dtype, backend=backend)
        assert same(state, merged(list(chosen), weights=list(chosen.values()), dtype=name))
        assert {tensor.device.type for tensor in state.values()} == {DEVICE}
    assert same(deltapack.load_state_dict(where, packs[0]), merged(packs[:1]))
    assert same(deltapack.load_state_dict(where, packs), merged(packs))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_many_batches_and_chunks(pack_of: PackOf, merged: Merged, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltapack.restoring import on_device

    monkeypatch.setattr(on_device, "_BATCH_BYTES", 10_000)
    base = {"long": random_tensor(1, (CHUNK + 5,), "bf16")} | {f"{number}": random_tensor(number, (77, 9), "bf16") for number in range(9)}
    pack = pack_of(base, tuned_model(base), drop_rate=0.95)
    assert same(deltapack.load_state_dict(pack.parent / "base.safetensors", pack, device=DEVICE, backend=backend), merged([pack]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_wrong_is_refused(base: Model, pack_of: PackOf, backend: str) -> None:
    from support.builders import edited, write_file

    pack = pack_of(base, tuned_model(base), drop_rate=0.5)
    where = write_file(pack.parent / "other.safetensors", base | {"a": edited(base["a"], 7, 0)})
    with pytest.raises(BaseMismatchError, match="other content") as caught:
        deltapack.load_state_dict(where, pack, device=DEVICE, backend=backend)
    assert (caught.value.tensor, caught.value.rule) == ("a", "R12")
    assert len(deltapack.load_state_dict(where, pack, device=DEVICE, backend=backend, verify=False)) == len(base)
    with deltapack.open_pack(pack) as opened:
        end = opened["b"].entry.terms[0].blob.end
    data = bytearray(pack.read_bytes())
    data[end - 1] ^= 1
    pack.write_bytes(data)
    with pytest.raises(ChecksumError):
        deltapack.load_state_dict(pack.parent / "base.safetensors", pack, device=DEVICE, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_result_is_checked_on_the_device(base: Model, pack_of: PackOf, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does nothing is found out."""
    from deltapack.device.torch_engine import TorchEngine
    from deltapack.device.triton_engine import TritonEngine

    pack = pack_of(base, tuned_model(base), drop_rate=0.5)
    for engine in (TorchEngine, TritonEngine):
        monkeypatch.setattr(engine, "switch", lambda *arguments: None)
    with pytest.raises(ChecksumError, match="the restored tensor is not what the pack promises"):
        deltapack.load_state_dict(pack.parent / "base.safetensors", pack, device=DEVICE, backend=backend)


def test_arguments(base: Model, pack_of: PackOf) -> None:
    packs = [pack_of(base, base | {"ids": whole("i64", np.arange(5) + seed)}, f"{seed}") for seed in (1, 2)]
    where = packs[0].parent / "base.safetensors"
    with pytest.raises(MergeConflictError):
        deltapack.load_state_dict(where, packs)
    assert deltapack.load_state_dict(where, packs, prefer=packs[1])["ids"].tolist() == [2, 3, 4, 5, 6]
    for options, message in (({"dtype": "i32"}, "not a float type"), ({"prefer": "x.dpk"}, "not among"), ({"workers": 0}, "out of range")):
        with pytest.raises(RecipeError, match=message):
            deltapack.load_state_dict(where, packs, **options)
    with pytest.raises(RecipeError, match="nothing to load"):
        deltapack.load_state_dict(where, [])
    with pytest.raises(RecipeError, match="not the name of a device"):
        deltapack.load_state_dict(where, packs[0], device="nonsense")
    with pytest.raises(RecipeError, match=r"no config.json"):
        deltapack.load_model(where, packs[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_language_model(tmp_path: Path, backend: str) -> None:
    """With tied embeddings and new tokens; dtype as asked."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    base.resize_token_embeddings(101)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.01)
    base.generation_config.max_length = 77
    base.save_pretrained(tmp_path / "tuned")
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "t.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    for dtype in (None, "f32"):
        deltapack.apply(tmp_path / "base", tmp_path / "t.dpk", tmp_path / "restored", dtype=dtype, force=True)
        wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "restored", dtype="auto")
        found = deltapack.load_model(tmp_path / "base", tmp_path / "t.dpk", device=DEVICE, dtype=dtype, backend=backend)
        assert type(found) is type(wanted) and found.dtype == wanted.dtype == (torch.float32 if dtype else torch.bfloat16)
        one, other = wanted.state_dict(), found.state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name].cpu()) for name in one)
        assert found.lm_head.weight is found.model.embed_tokens.weight and len(found.lm_head.weight) == 101
        ids = torch.arange(20)[None]
        with torch.inference_mode():
            assert torch.equal(found.to("cpu")(ids).logits, wanted(ids).logits)
        assert found.generation_config.max_length == 77 and not found.training


def test_the_class_that_the_config_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=3))
    base.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.01)
    base.save_pretrained(tmp_path / "tuned")
    call = tmp_path / "base", tmp_path / "t.dpk"
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "t.dpk", recipe=deltapack.Recipe(drop_rate=0.5))
    found = deltapack.load_model(*call)
    assert type(found) is transformers.BertForSequenceClassification and found.num_labels == 3
    state = deltapack.load_state_dict(*call)
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items() if name in state)
    assert type(deltapack.load_model(*call, model_class=transformers.AutoModel)) is transformers.BertModel
    assert type(deltapack.load_model(*call, model_class=transformers.BertModel)) is transformers.BertModel
    with pytest.raises(RecipeError, match="model_class is not a class of transformers"):
        deltapack.load_model(*call, model_class="BertModel")


@pytest.mark.parametrize("architectures", [None, [], ["NobodysModel"], [3]])
def test_a_config_that_names_no_class(architectures: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from support.builders import write_folder

    base = {"w": random_tensor(1, (5, 5))}
    config = json.dumps({"model_type": "bert", "architectures": architectures})
    write_folder(tmp_path / "base", base, {"config.json": config})
    write_folder(tmp_path / "tuned", tuned_model(base), {"config.json": config})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "t.dpk")
    # Some versions of transformers refuse what is no list of names before it is asked for a class.
    with pytest.raises(RecipeError, match=r"config\.json names no class of transformers.*Give model_class=|cannot build the model"):
        deltapack.load_model(tmp_path / "base", tmp_path / "t.dpk")


def test_a_model_that_needs_code(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from support.builders import write_folder

    base = {"w": random_tensor(1, (5, 5))}
    config = json.dumps({"model_type": "unheard of"})
    write_folder(tmp_path / "base", base, {"config.json": config})
    write_folder(tmp_path / "tuned", tuned_model(base), {"config.json": config})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "t.dpk")
    with pytest.raises(RecipeError, match="transformers cannot build the model"):
        deltapack.load_model(tmp_path / "base", tmp_path / "t.dpk")


@pytest.mark.parametrize(("layers", "words"), [(10**9, "larger than any"), (3000, "more modules than there are tensors for")])
def test_a_config_that_asks_for_a_model_without_end(layers: int, words: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from support.builders import write_folder

    base = {"w": random_tensor(1, (5, 5))}
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": layers, "n_head": 2, "vocab_size": 9}
    write_folder(tmp_path / "base", base, {"config.json": json.dumps(config)})
    write_folder(tmp_path / "tuned", tuned_model(base), {"config.json": json.dumps(config)})
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "t.dpk")
    with pytest.raises(LimitError, match=words):
        deltapack.load_model(tmp_path / "base", tmp_path / "t.dpk")
