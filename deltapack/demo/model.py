"""A small byte-level Llama in plain torch, whose checkpoint is an ordinary Hugging Face folder.

The parameters are a dictionary with the tensor names that `transformers.LlamaForCausalLM` uses, so the
folder loads there as it is; a byte is its own token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["VOCABULARY", "ModelSize", "initial_parameters", "load_model", "logits", "save_model"]

VOCABULARY = 256
_NORM_EPSILON = 1e-5
_ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class ModelSize:
    """The shape of the model.

    Attributes:
        layers: Number of decoder layers.
        width: Size of the hidden state; `heads` divides it, into heads of even size.
        heads: Number of attention heads.
        inner: Size of the hidden layer of the feed-forward part.
        context: Number of bytes that the model sees at once.
    """

    layers: int = 2
    width: int = 128
    heads: int = 2
    inner: int = 384
    context: int = 128


def initial_parameters(size: ModelSize, seed: int) -> dict[str, Tensor]:
    """Return fresh f32 parameters; matrices are [out, in]."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = size.width, size.inner

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

    parameters = {"model.embed_tokens.weight": matrix(VOCABULARY, width)}
    for layer in range(size.layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj"):
            parameters[f"{prefix}self_attn.{name}.weight"] = matrix(width, width)
        # Layers start as the identity: training is stable from the first step.
        parameters[f"{prefix}self_attn.o_proj.weight"] = torch.zeros(width, width)
        parameters[f"{prefix}mlp.gate_proj.weight"] = matrix(inner, width)
        parameters[f"{prefix}mlp.up_proj.weight"] = matrix(inner, width)
        parameters[f"{prefix}mlp.down_proj.weight"] = torch.zeros(width, inner)
        parameters[f"{prefix}input_layernorm.weight"] = torch.ones(width)
        parameters[f"{prefix}post_attention_layernorm.weight"] = torch.ones(width)
    parameters["model.norm.weight"] = torch.ones(width)
    parameters["lm_head.weight"] = torch.zeros(VOCABULARY, width)
    return parameters


def logits(parameters: Mapping[str, Tensor], size: ModelSize, tokens: Tensor) -> Tensor:
    """Return the scores of the next byte, [B, T, 256] f32, for `tokens` [B, T] int64."""
    cos, sin = _rotation(size, tokens.shape[1])
    x = F.embedding(tokens, parameters["model.embed_tokens.weight"])  # [B, T, width]
    for layer in range(size.layers):
        prefix = f"model.layers.{layer}."
        y = _norm(x, parameters[f"{prefix}input_layernorm.weight"])
        x = x + _attention(parameters, f"{prefix}self_attn.", size, y, cos, sin)
        y = _norm(x, parameters[f"{prefix}post_attention_layernorm.weight"])
        gate = F.linear(y, parameters[f"{prefix}mlp.gate_proj.weight"])
        up = F.linear(y, parameters[f"{prefix}mlp.up_proj.weight"])
        x = x + F.linear(F.silu(gate) * up, parameters[f"{prefix}mlp.down_proj.weight"])
    return F.linear(_norm(x, parameters["model.norm.weight"]), parameters["lm_head.weight"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, _NORM_EPSILON)


def _attention(parameters: Mapping[str, Tensor], prefix: str, size: ModelSize, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return causal self-attention over `x` [B, T, width]."""
    batch, length, width = x.shape

    def heads(name: str) -> Tensor:  # [B, heads, T, width / heads]
        y = F.linear(x, parameters[f"{prefix}{name}.weight"])
        return y.view(batch, length, size.heads, width // size.heads).transpose(1, 2)

    q, k = _rotate(heads("q_proj"), cos, sin), _rotate(heads("k_proj"), cos, sin)
    y = F.scaled_dot_product_attention(q, k, heads("v_proj"), is_causal=True)
    return F.linear(y.transpose(1, 2).reshape(batch, length, width), parameters[f"{prefix}o_proj.weight"])


def _rotation(size: ModelSize, length: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles, [T, width / heads] f32 each."""
    head = size.width // size.heads
    frequency = _ROPE_THETA ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def save_model(folder: Path, parameters: Mapping[str, Tensor], size: ModelSize) -> None:
    """Write a Hugging Face folder with the parameters rounded to bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in parameters.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(size))
    _write_json(folder / "tokenizer.json", _tokenizer())
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": size.context}
    _write_json(folder / "tokenizer_config.json", tokenizer)


def load_model(folder: Path) -> tuple[dict[str, Tensor], ModelSize]:
    """Read a folder back, as f32 parameters."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    size = ModelSize(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        context=config["max_position_embeddings"],
    )
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}, size


def _config(size: ModelSize) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "head_dim": size.width // size.heads,
        "hidden_act": "silu",
        "hidden_size": size.width,
        "intermediate_size": size.inner,
        "max_position_embeddings": size.context,
        "mlp_bias": False,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.heads,
        "rms_norm_eps": _NORM_EPSILON,
        "rope_theta": _ROPE_THETA,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }


def _tokenizer() -> dict[str, object]:
    """Return a tokenizer.json in which every byte is the token of that number."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    # The byte-level alphabet of GPT-2: bytes that do not print are shown as the characters from U+0100 on.
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []},
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
