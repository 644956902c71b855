"""A Llama in plain torch for any size, over a dictionary of weights: quick to train on a CPU that multiplies bf16 in hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["EMBEDDING", "HEAD", "Shape", "hidden", "scores"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama that its weights do not tell.

    Attributes:
        layers: Number of decoder layers.
        width: Of the hidden state.
        heads: Of queries.
        keys: Heads of keys and values.
        theta: Of the rotary angles.
        epsilon: Of the norms.
    """

    layers: int
    width: int
    heads: int
    keys: int
    theta: float
    epsilon: float

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """Read a folder's config.json."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["num_attention_heads"],
            config.get("num_key_value_heads", config["num_attention_heads"]),
            float(theta),
            float(config["rms_norm_eps"]),
        )


def scores(weights: Mapping[str, Tensor], shape: Shape, tokens: Tensor) -> Tensor:
    """Return the scores of the next token, f32 [B, T, vocabulary], for int64 tokens [B, T]."""
    return F.linear(hidden(weights, shape, tokens), weights[HEAD if HEAD in weights else EMBEDDING]).float()


def hidden(weights: Mapping[str, Tensor], shape: Shape, tokens: Tensor) -> Tensor:
    """Return the last hidden states, [B, T, width] in the dtype of the matrices; what layers add up stays f32."""
    dtype = weights[EMBEDDING].dtype
    cos, sin = (table.to(dtype) for table in _angles(shape, tokens.shape[1]))
    x = F.embedding(tokens, weights[EMBEDDING]).float()

    def norm(name: str) -> Tensor:
        return F.rms_norm(x, (shape.width,), weights[f"{name}.weight"].float(), shape.epsilon).to(dtype)

    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        x = x + _attention(weights, f"{at}self_attn.", shape, norm(f"{at}input_layernorm"), cos, sin).float()
        y = norm(f"{at}post_attention_layernorm")
        gate, up = (F.linear(y, weights[f"{at}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, weights[f"{at}mlp.down_proj.weight"]).float()
    return norm("model.norm")


def _attention(weights: Mapping[str, Tensor], at: str, shape: Shape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, length, width = x.shape

    def heads(name: str, count: int) -> Tensor:  # [B, count, T, width / heads]
        return F.linear(x, weights[f"{at}{name}_proj.weight"]).view(batch, length, count, -1).transpose(1, 2)

    q, k, v = heads("q", shape.heads), heads("k", shape.keys), heads("v", shape.keys)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    k, v = (part.repeat_interleave(shape.heads // shape.keys, 1) for part in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(y.transpose(1, 2).reshape(batch, length, width), weights[f"{at}o_proj.weight"])


def _angles(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    head = shape.width // shape.heads
    frequency = shape.theta ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
