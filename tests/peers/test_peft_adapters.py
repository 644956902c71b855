"""Adapters that peft saves, read as deltapack merges them, against peft's own `merge_and_unload`.

Both add the same products in f32; peft's sum over the rank runs in the order that its matrix product takes, so results may differ by what
two orders of one sum do: at most `rank * 2^-23` of the sum of the magnitudes of its terms, and the rounding of base + update. Known
difference: peft rounds the update of an embedding to the base's type, and the update of an adapter in bf16 to bf16, before it adds it; here
the sum alone is rounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.builders import Tensor, read_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import deltapack
from deltapack import Recipe
from deltapack.adapters import open_adapted
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import UnsupportedError

pytestmark = pytest.mark.peers
peft = pytest.importorskip("peft", reason="peft is not installed: pip install -c constraints.txt '.[peers]'")

MLP = ["q_proj", "v_proj", "up_proj", "down_proj"]


def llama(**more: Any) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, **heads}
    return LlamaForCausalLM(LlamaConfig(vocab_size=90, tie_word_embeddings=False, **shape, **more))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=48, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False))


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "lora": (llama, lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=MLP)),
    "rslora with patterns": (
        llama,
        lambda: peft.LoraConfig(
            r=4,
            lora_alpha=7,
            use_rslora=True,
            target_modules="all-linear",
            rank_pattern={"layers.1.self_attn.q_proj": 9, "down_proj": 2},
            alpha_pattern={r"model\.layers\.\d+\.mlp\.up_proj": 31},
        ),
    ),
    "embeddings and modules_to_save": (
        llama,
        lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "k_proj"], modules_to_save=["lm_head", "norm"]),
    ),
    "dora": (llama, lambda: peft.LoraConfig(r=6, use_dora=True, target_modules=MLP)),
    "dora of embeddings": (llama, lambda: peft.LoraConfig(r=6, use_dora=True, target_modules=["embed_tokens", "o_proj"])),
    "fan_in_fan_out": (gpt2, lambda: peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "fan_in_fan_out, not said": (gpt2, lambda: peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"])),
    "dora, fan_in_fan_out": (gpt2, lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "loha": (llama, lambda: peft.LoHaConfig(r=4, alpha=6, target_modules=MLP)),
    "lokr": (llama, lambda: peft.LoKrConfig(r=3, alpha=6, target_modules=MLP)),
    "lokr, both decomposed": (
        llama,
        lambda: peft.LoKrConfig(r=2, alpha=5, decompose_both=True, target_modules=MLP, rank_pattern={"up_proj": 30}),
    ),
    "bias": (lambda: llama(attention_bias=True), lambda: peft.LoraConfig(r=4, bias="all", target_modules=MLP)),
}


def train(model: torch.nn.Module, seed: int) -> None:
    """Give whatever could be trained other values."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                factor = 1 + 0.1 * torch.rand_like(parameter) if "magnitude" in name else 1
                parameter.copy_(parameter * factor if "magnitude" in name else parameter + 0.05 * torch.randn_like(parameter))


def save_pair(case: str, folder: Path, dtype: torch.dtype) -> None:
    """A base, an adapter of it, and peft's merge of both."""
    torch.manual_seed(1)
    model_of, config_of = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = model_of().to(dtype)
        base.save_pretrained(folder / "base")
        wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype), config_of())
        train(wrapped, 2)
        wrapped.save_pretrained(folder / "adapter")
        again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype), folder / "adapter")
        again.merge_and_unload().save_pretrained(folder / "merged")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_what_peft_merges(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_pair(case, tmp_path, dtype)
    theirs, before = read_model(tmp_path / "merged"), read_model(tmp_path / "base")
    changed = 0
    with open_checkpoint(tmp_path / "base") as base, open_adapted(base, tmp_path / "adapter") as ours:
        assert ours.tensors.keys() == theirs.keys()
        for name, tensor in theirs.items():
            info = ours.tensors[name]
            assert (info.dtype.name, info.shape) == (tensor.dtype, tensor.shape)
            found = Tensor(tensor.dtype, ours.read(name).reshape(tensor.shape)).f64
            # Sums of up to 31 terms below 1, and one step of the type where a sum lies at the middle of two of its values.
            step = np.abs(tensor.f64) * (2.0**-7 if dtype == torch.bfloat16 else 2.0**-22)
            twice = dtype == torch.bfloat16 and name.endswith("embed_tokens.weight")
            of_update = np.abs(found - before[name].f64) * 2.0**-7 if twice else 0.0
            assert (np.abs(found - tensor.f64) <= 2.0**-18 + step + of_update).all(), name
            if dtype == torch.bfloat16 and not twice:
                assert np.mean(found != tensor.f64) < 0.01
            changed += bool((tensor.f64 != before[name].f64).any())
    assert changed >= 2


def test_a_pack_of_an_adapter(tmp_path: Path) -> None:
    save_pair("lora", tmp_path, torch.bfloat16)
    deltapack.compress(tmp_path / "base", tmp_path / "adapter", tmp_path / "x.dpk", recipe=Recipe(exact=True))
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits.float(), merged(tokens).logits.float(), atol=0.02)


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(6, 10, 3), torch.nn.Conv2d(10, 7, 1)
        self.third, self.head = torch.nn.Conv1d(7, 5, 4), torch.nn.Linear(5, 3)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_convolutions(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    modules = ["first", "second", "third", "head"]
    config = {
        "lora": lambda: peft.LoraConfig(r=3, target_modules=modules),
        "dora": lambda: peft.LoraConfig(r=3, use_dora=True, target_modules=modules),
        "loha": lambda: peft.LoHaConfig(r=3, target_modules=modules),
        "lokr": lambda: peft.LoKrConfig(r=1, target_modules=modules),
    }[kind]()
    model = Convolutions()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    wrapped = peft.get_peft_model(model, config)
    train(wrapped, 4)
    wrapped.save_pretrained(tmp_path / "adapter")
    theirs = {name: tensor.double().numpy() for name, tensor in wrapped.merge_and_unload().state_dict().items()}
    with open_checkpoint(tmp_path / "base.safetensors") as base, open_adapted(base, tmp_path / "adapter") as ours:
        assert ours.tensors.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert (np.abs(ours.read(name).reshape(tensor.shape) - tensor) <= 2.0**-20).all(), name
            assert (base.read(name) != ours.read(name)).any() == name.endswith("weight")


@pytest.mark.filterwarnings("ignore")
def test_a_new_head_on_a_bare_encoder(tmp_path: Path) -> None:
    """The adapter is of a model with one more wrapper than the base's files, and has a classifier."""
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=60, **shape)).save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    train(wrapped, 5)
    wrapped.save_pretrained(tmp_path / "adapter")
    theirs = wrapped.merge_and_unload().state_dict()
    deltapack.compress(tmp_path / "base", tmp_path / "adapter", tmp_path / "x.dpk", recipe=Recipe(exact=True))
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out")
    ours = read_model(tmp_path / "out")
    assert {name.removeprefix("bert.") for name in theirs} == ours.keys()
    for name, tensor in theirs.items():
        assert (np.abs(ours[name.removeprefix("bert.")].f64 - tensor.double().numpy()) <= 2.0**-20).all(), name


@pytest.mark.filterwarnings("ignore")
def test_tied_embeddings(tmp_path: Path) -> None:
    """Linear layers of such a model are merged; its embedding alone is not."""
    shape: dict[str, Any] = {"n_embd": 48, "n_layer": 1, "n_head": 4, "n_positions": 32, "vocab_size": 90}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path / "base")
    for target in ("c_attn", "wte"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[target], fan_in_fan_out=target != "wte")).save_pretrained(
            tmp_path / target
        )
    with open_checkpoint(tmp_path / "base") as base:
        with open_adapted(base, tmp_path / "c_attn") as ours:
            assert ours.tensors.keys() == base.tensors.keys()
        with pytest.raises(UnsupportedError, match="changes a tied tensor"):
            open_adapted(base, tmp_path / "wte")
