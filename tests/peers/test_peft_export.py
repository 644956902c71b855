"""Adapters that deltapack exports, loaded and merged by peft, against the optimal truncated SVD and peft's own conversion."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.builders import Model, read_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

import deltapack
from deltapack import Recipe

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
peft = pytest.importorskip("peft", reason="peft is not installed: pip install -c constraints.txt '.[peers]'")
RANK = 6


def llama(*, tied: bool = False, bias: bool = False) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": bias, "tie_word_embeddings": tied}
    shape: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, **heads}
    return LlamaForCausalLM(LlamaConfig(vocab_size=90, **shape))


def gpt2(*, tied: bool = False) -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=48, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=tied))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama with biases": lambda: llama(bias=True),
    "tied": lambda: llama(tied=True),
    "gpt2": gpt2,
    "gpt2, tied": lambda: gpt2(tied=True),
}


def trained(model: Any) -> Any:
    """Change every parameter: matrices by directions whose size falls."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            change = torch.randn_like(parameter)
            if parameter.dim() > 1:
                left, values, right = torch.linalg.svd(change, full_matrices=False)
                change = left * (0.7 ** torch.arange(len(values))) @ right
            parameter += 0.05 * change
    return model


CHANGES: dict[str, Callable[[Any], Any]] = {"base": lambda model: model, "tuned": trained}


def make(folder: Path, model_of: Callable[[], Any]) -> tuple[Model, Model]:
    """A base, a fine-tune, and an exact pack; their tensors."""
    for name, change in CHANGES.items():
        torch.manual_seed(1)
        change(model_of()).save_pretrained(folder / name)
    deltapack.compress(folder / "base", folder / "tuned", folder / "x.dpk", recipe=Recipe(exact=True), workers=1)
    return read_model(folder / "base"), read_model(folder / "tuned")


def merged(base: Any, adapter: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What peft makes of base and adapter; nothing may be missing, or too much."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        model = peft.PeftModel.from_pretrained(base, adapter)
    with torch.no_grad():
        return {name: tensor.double().numpy() for name, tensor in model.merge_and_unload().state_dict().items()}


def errors(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], found: np.ndarray[Any, Any], rank: int) -> tuple[float, float]:
    """Norms of what an approximation leaves, and the best of its rank."""
    matrix = (after - before).reshape(len(after), -1)
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(np.linalg.norm(after - found)), float(np.sqrt((values[rank:] ** 2).sum()))


@pytest.mark.parametrize("kind", MODELS)
def test_peft_merges_what_is_near_the_fine_tune(kind: str, tmp_path: Path) -> None:
    base, tuned = make(tmp_path, MODELS[kind])
    report = deltapack.export_adapter(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "adapter", rank=RANK)
    assert not report.left_out and not report.warnings
    found = merged(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    rows = {row.tensor: row for row in report.rows}
    assert set(rows) | set(report.whole) == {name for name in tuned if not np.array_equal(base[name].f64, tuned[name].f64)}
    for name, tensor in tuned.items():
        if name in report.whole:
            assert np.array_equal(found[name], tensor.f64), name
        else:
            left, best = errors(base[name].f64, tensor.f64, found[name], RANK)
            total = float(np.linalg.norm(tensor.f64 - base[name].f64))
            assert best <= left * (1 + 1e-5) and left <= 1.01 * best + 1e-6 * total, name
            assert rows[name].error == pytest.approx(left / total, rel=1e-3)
    if "tied" in kind:
        end = "lm_head.weight"
        embedding = next(name for name in tuned if name.endswith(("embed_tokens.weight", "wte.weight")))
        assert np.array_equal(found[end], tuned[embedding].f64)


def test_the_layers_that_peft_converts_itself(tmp_path: Path) -> None:
    """A LoHa, made a LoRA by peft and by a pack: the same products."""
    torch.manual_seed(4)
    llama().save_pretrained(tmp_path / "base")
    modules = ["q_proj", "down_proj"]
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft.LoHaConfig(r=3, target_modules=modules))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hada" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "loha")
    peft.save_as_lora(tmp_path / "theirs", model, rank=5)
    deltapack.compress(tmp_path / "base", tmp_path / "loha", tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1)
    deltapack.export_adapter(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "ours", rank=5)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and len(ours) == 8
    for name in (name for name in ours if "lora_A" in name):
        pair = [files[name.replace("lora_A", "lora_B")] @ files[name] for files in (ours, theirs)]
        assert np.linalg.norm(pair[0] - pair[1]) <= 1e-4 * np.linalg.norm(pair[1]), name


def test_a_share_of_the_energy(tmp_path: Path) -> None:
    base, tuned = make(tmp_path, llama)
    report = deltapack.export_adapter(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "adapter", energy=0.9)
    found = merged(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    for row in report.rows:
        before, after = base[row.tensor].f64, tuned[row.tensor].f64
        values = np.linalg.svd(after - before, compute_uv=False) ** 2
        assert abs(row.rank - int(np.searchsorted(np.cumsum(values), 0.9 * values.sum())) - 1) <= 0
        assert row.energy >= 0.9 - 1e-6
        left = np.linalg.norm(after - found[row.tensor]) / np.linalg.norm(after - before)
        assert left == pytest.approx(row.error, rel=1e-3)


def test_a_bare_base_of_a_model_with_a_wrapper(tmp_path: Path) -> None:
    """Files say `h.0`, as those of GPT-2 on the Hub do, the config names a model that says `transformer.h.0`."""
    shape = GPT2Config(vocab_size=90, n_embd=48, n_layer=1, n_head=4, n_positions=32, tie_word_embeddings=True)
    for name, change in CHANGES.items():
        torch.manual_seed(1)
        change(GPT2Model(shape)).save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1)
    report = deltapack.export_adapter(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "adapter", rank=48)
    assert not report.left_out
    found, tuned = merged(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"), read_model(tmp_path / "tuned")
    for name, tensor in tuned.items():
        assert np.abs(found[f"transformer.{name}"] - tensor.f64).max() <= 2.0**-20, name


def test_a_new_head(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(vocab_size=60, **shape))
    model.bert.save_pretrained(tmp_path / "base")
    trained(model).save_pretrained(tmp_path / "tuned")
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1)
    report = deltapack.export_adapter(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "adapter", rank=60)
    assert {"classifier.weight", "classifier.bias"} <= set(report.whole)
    start = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    found, tuned = merged(start, tmp_path / "adapter"), read_model(tmp_path / "tuned")
    for name, tensor in tuned.items():
        assert np.abs(found[name] - tensor.f64).max() <= 2.0**-18, name
