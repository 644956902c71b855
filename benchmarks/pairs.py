"""The pairs that benchmarks run on: real ones from the package index, and families made up on the spot, written as a stream.

Made-up weights are bf16 and Gaussian, and so are the differences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.assets import PAIRS, AssetsUnavailableError, fetch
from deltapack.checkpoint import open_writer, plan_shards
from deltapack.dtypes import BY_NAME
from deltapack.kernels.rounding import round_bf16, to_f32

__all__ = ["BF16", "Pair", "Shapes", "llama_shapes", "real_pairs", "synthetic_pair", "write_family"]

Shapes = Mapping[str, tuple[int, ...]]
BF16 = BY_NAME["bf16"]
BLOCK = 1 << 20
WEIGHT_STD = 0.02


@dataclass(frozen=True)
class Pair:
    """A base, a fine-tune of it, and a name to print."""

    name: str
    base: Path
    finetuned: Path


def real_pairs() -> tuple[list[Pair], list[str]]:
    """Return the real pairs that could be had, and a sentence for each that could not."""
    pairs, missing = [], []
    for name in PAIRS:
        try:
            base, finetuned = fetch(name)
        except AssetsUnavailableError as error:
            missing.append(f"pair {name}: not measured, {error}")
        else:
            pairs.append(Pair(name, base, finetuned))
    return pairs, missing


@contextmanager
def synthetic_pair(quick: bool) -> Iterator[Pair]:
    """Make the made-up Llama in a temporary folder: 156 M parameters in bf16 in 3 shards, or 11 M."""
    shapes = llama_shapes(384, 3, 8000) if quick else llama_shapes(1024, 8, 32000)
    with TemporaryDirectory() as folder:
        base, (tuned,) = write_family(Path(folder), shapes)
        yield Pair("synthetic", base, tuned)


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
