"""The layouts of real architectures: what transformers saves, what it holds in memory, and what older versions saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.builders import decode_by_spec, read_model
from support.recipes import DARE

import deltapack
from deltapack.format.reader import PackReader

transformers = pytest.importorskip("transformers", minversion="5.0")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.slow
_SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def models() -> dict[str, tuple[Any, Any]]:
    """Class and config of tiny models."""
    mixtral = transformers.MixtralConfig(**_SIZES, **_HEADS, num_local_experts=4)
    qwen = transformers.Qwen3MoeConfig(**_SIZES, **_HEADS, num_experts=4, moe_intermediate_size=16, head_dim=8)
    gpt2 = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    classes = (transformers.MixtralForCausalLM, transformers.Qwen3MoeForCausalLM, transformers.GPT2LMHeadModel)
    return dict(zip(("mixtral", "qwen3-moe", "gpt2"), zip(classes, (mixtral, qwen, gpt2), strict=True), strict=True))


def pair(kind: str) -> tuple[Any, Any]:
    """A base and a fine-tune of it."""
    made, config = models()[kind]
    torch.manual_seed(0)
    base, tuned = (made(config).to(torch.bfloat16) for _ in range(2))
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    return base, tuned


def in_memory(model: Any, path: Path, *, turned: tuple[str, ...] = ()) -> Path:
    """Save the tensors as the model holds them, or those whose name ends so the other way round."""
    path.mkdir()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor is not None}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    state = {name: tensor.T.contiguous() if name.endswith(turned or ("/",)) else tensor for name, tensor in state.items()}
    safetensors.save_file(state, path / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe", "gpt2"])
def test_layouts_of_checkpoints(tmp_path: Path, kind: str) -> None:
    """Separate and fused experts, Conv1D and Linear: each packed against the other, with no tensor left without a partner."""
    base, tuned = pair(kind)
    base.save_pretrained(tmp_path / "base")
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight") if kind == "gpt2" else ()
    in_memory(tuned, tmp_path / "tuned", turned=linear)
    for one, two in (("base", "tuned"), ("tuned", "base")):
        pack = tmp_path / f"{two}.dpk"
        report = deltapack.compress(tmp_path / one, tmp_path / two, pack, recipe=DARE)
        assert report.warnings == []
        with PackReader(pack) as reader:
            assert all(entry.base is not None for entry in reader.index.entries) and reader.index.pieces
        deltapack.apply(tmp_path / one, pack, tmp_path / f"{two}-again")
        restored = read_model(tmp_path / f"{two}-again" / "model.safetensors")
        assert restored == decode_by_spec(read_model(tmp_path / one / "model.safetensors"), pack)
        assert restored.keys() == read_model(tmp_path / two / "model.safetensors").keys()


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_live_models_with_fused_experts(tmp_path: Path, kind: str) -> None:
    """A pack of what transformers saves, on what it holds in memory."""
    base, tuned = pair(kind)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "pack.dpk")
    deltapack.apply(tmp_path / "base", tmp_path / "pack.dpk", tmp_path / "again")
    made = type(base)
    wanted = made.from_pretrained(tmp_path / "again", dtype=torch.bfloat16).state_dict()
    model = made.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with deltapack.attach(model, tmp_path / "base").activate(tmp_path / "pack.dpk"):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
        assert not torch.equal(model.state_dict()["model.layers.0.mlp.experts.down_proj"], before["model.layers.0.mlp.experts.down_proj"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
