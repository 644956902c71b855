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
from support.builders import Tensor, read_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import deltapack
from deltapack import Recipe
from deltapack.adapters import open_adapted
from deltapack.checkpoint import open_checkpoint

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
