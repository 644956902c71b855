"""Checkpoint pairs made up on the spot: bf16 weights and Gaussian differences, written as a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltapack.checkpoint import open_writer, plan_shards
from deltapack.dtypes import BY_NAME
from deltapack.kernels.rounding import round_bf16, to_f32

__all__ = ["Shapes", "llama_shapes", "write_family"]

Shapes = Mapping[str, tuple[int, ...]]
BF16 = BY_NAME["bf16"]
BLOCK = 1 << 20
WEIGHT_STD = 0.02


def llama_shapes(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Llama with grouped-query attention and an untied head."""
    inner, keys = hidden * 11 // 4, hidden // 4
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (keys, hidden) for name in "kv"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes


def write_family(
    folder: Path, shapes: Shapes, *, finetunes: int = 1, shard_bytes: int = 128 << 20, seed: int = 0
) -> tuple[Path, list[Path]]:
    """Write a base and fine-tunes of it; no more than a few MB are in memory at a time.

    Weights are Gaussian with a standard deviation of 0.02 (norms: near 1). The differences of a tensor are Gaussian with a
    standard deviation between 5e-4 and 1e-3, as seen in supervised fine-tuning, added in f32 and rounded to bf16.

    Args:
        folder: Where to write.
        shapes: Names and shapes.
        finetunes: How many fine-tunes.
        shard_bytes: Largest shard.
        seed: Of everything.

    Returns:
        The base's folder and the fine-tunes' folders.
    """
    base, tuned = folder / "base", [folder / f"tuned{number}" for number in range(finetunes)]
    for number, out in enumerate([base, *tuned]):
        _write(out, shapes, number, shard_bytes, seed)
    return base, tuned


def _write(out: Path, shapes: Shapes, number: int, shard_bytes: int, seed: int) -> None:
    shards = plan_shards([(name, BF16, shape) for name, shape in shapes.items()], max_shard_size=shard_bytes)
    with open_writer(out, shards) as writer:
        for place, (name, shape) in enumerate(shapes.items()):
            numel = int(np.prod(shape))
            for start in range(0, numel, BLOCK):
                length = min(BLOCK, numel - start)
                elements = round_bf16(_weights((seed, place, start), length, len(shape)))
                if number:
                    std = np.random.default_rng((seed, place, 7)).uniform(5e-4, 1e-3)
                    elements = round_bf16(to_f32(elements, BF16) + _gauss((seed, place, start, number), length, std))
                writer.write(name, start, elements)
        writer.write_side_file("config.json", json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}).encode())


def _weights(seed: Sequence[int], length: int, rank: int) -> NDArray[np.float32]:
    return _gauss((*seed, 0), length, WEIGHT_STD) + np.float32(1 if rank == 1 else 0)


def _gauss(seed: Sequence[int], length: int, std: float) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(length, np.float32) * np.float32(std)
