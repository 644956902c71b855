"""Llama checkpoints of a wished size with fine-tunes, made up once and kept in a cache folder.

    python -m benchmarks.checkpoints 1.0 4      # make 1 GB and 4 fine-tunes, print where they are

The cache is $DELTAPACK_BENCH, or ~/.cache/deltapack/bench. A folder is a valid Hugging Face checkpoint without a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import BF16, Shapes, llama_shapes
from benchmarks.results import progress
from deltapack.checkpoint import open_writer, plan_shards
from deltapack.kernels.rounding import round_bf16, to_f32

__all__ = ["Family", "Llama", "build", "cache_folder", "equal_share", "llama_of_size"]

BLOCK = 1 << 20
HEAD_DIM = 64
SHARD_BYTES = 256_000_000
GENERATOR = 1
"""Goes into the cache's key; raise it when the same parameters give other bytes."""


@dataclass(frozen=True)
class Llama:
    """The numbers that decide the shapes of a Llama, and the statistics of its weights.

    Attributes:
        hidden: Width of the model.
        layers: Number of layers.
        vocabulary: Rows of the embedding and of the untied head.
        weight_std: Standard deviation of a matrix; layers differ by up to a factor of 1.5 either way. Norms are near 1.
        delta_low: Smallest standard deviation of a tensor's difference, as a share of the tensor's own.
        delta_high: Largest one. A tensor's is drawn evenly between the two.
        seed: Of everything.
    """

    hidden: int
    layers: int
    vocabulary: int
    weight_std: float = 0.02
    delta_low: float = 1e-3
    delta_high: float = 3e-3
    seed: int = 0

    @property
    def shapes(self) -> Shapes:
        return llama_shapes(self.hidden, self.layers, self.vocabulary)

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def key(self) -> str:
        """A name for the cache that says all that decides the bytes."""
        text = json.dumps([GENERATOR, SHARD_BYTES, asdict(self)], sort_keys=True)
        return f"llama-{2 * self.numel / 1e9:.3f}GB-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def config(self) -> bytes:
        """The config.json that transformers and mergekit read."""
        heads = self.hidden // HEAD_DIM
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden * 11 // 4,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 4),
            "head_dim": self.hidden // heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }
        return (json.dumps(config, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Family:
    """A base and fine-tunes of it on disk."""

    llama: Llama
    base: Path
    tuned: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one checkpoint."""
        return 2 * self.llama.numel


def llama_of_size(gigabytes: float) -> Llama:
    """Return the Llama whose bf16 checkpoint is nearest to a size in GB (1e9 bytes), from 0.005 up."""
    hidden, vocabulary = next(
        (hidden, vocabulary)
        for at_least, hidden, vocabulary in ((0.8, 2048, 32000), (0.2, 1024, 32000), (0.08, 512, 32000), (0.0, 256, 8192))
        if gigabytes >= at_least
    )
    empty, one = Llama(hidden, 0, vocabulary).numel, Llama(hidden, 1, vocabulary).numel
    return Llama(hidden, max(1, round((gigabytes * 1e9 / 2 - empty) / (one - empty))), vocabulary)


def cache_folder() -> Path:
    """Return where checkpoints are kept between runs."""
    given = os.environ.get("DELTAPACK_BENCH")
    return Path(given) if given else Path.home() / ".cache" / "deltapack" / "bench"


def build(llama: Llama, finetunes: int) -> Family:
    """Return a base and fine-tunes of it; what the cache lacks is made, block by block on two threads.

    A fine-tune is `round(base + difference)` with Gaussian differences in f32, as training from a bf16 checkpoint leaves it. With
    differences of 1e-3 to 3e-3 of the weights most elements round back to the bits of the base, as is seen in real fine-tunes.

    Raises:
        SystemExit: The disk has no room.
    """
    home = cache_folder() / llama.key
    folders = [home / "base", *(home / f"tuned{number}" for number in range(1, finetunes + 1))]
    missing = [number for number, folder in enumerate(folders) if not folder.is_dir()]
    if missing:
        home.mkdir(parents=True, exist_ok=True)
        need, free = len(missing) * 2 * llama.numel, shutil.disk_usage(home).free
        if free < 1.1 * need:
            place = "set DELTAPACK_BENCH to another place"
            raise SystemExit(f"{home} has {free / 1e9:.1f} GB free, {1.1 * need / 1e9:.1f} GB are needed; {place}")
        progress(f"making {len(missing)} checkpoints of {2 * llama.numel / 1e9:.2f} GB")
        _write(llama, {number: folders[number] for number in missing})
    return Family(llama, folders[0], tuple(folders[1:]))


def equal_share(family: Family, name: str) -> float:
    """Return the share of a tensor's elements that the first fine-tune has bit for bit from the base."""
    from deltapack.checkpoint import open_checkpoint

    with open_checkpoint(family.base) as base, open_checkpoint(family.tuned[0]) as tuned:
        return float(np.mean(base.read(name) == tuned.read(name)))


def _write(llama: Llama, folders: dict[int, Path]) -> None:
    shapes = llama.shapes
    shards = plan_shards([(name, BF16, shape) for name, shape in shapes.items()], max_shard_size=SHARD_BYTES)
    blocks = [
        (place, name, start, min(BLOCK, math.prod(shape) - start), len(shape))
        for place, (name, shape) in enumerate(shapes.items())
        for start in range(0, math.prod(shape), BLOCK)
    ]
    with ExitStack() as stack:
        writers = {number: stack.enter_context(open_writer(folder, shards)) for number, folder in folders.items()}

        def make(block: tuple[int, str, int, int, int]) -> None:
            place, name, start, length, rank = block
            base = _base_block(llama, place, start, length, rank)
            for number, writer in writers.items():
                writer.write(name, start, base if number == 0 else _tuned_block(llama, number, place, start, base, rank))

        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(make, blocks):
                pass
        for writer in writers.values():
            writer.write_side_file("config.json", llama.config())


def _base_block(llama: Llama, place: int, start: int, length: int, rank: int) -> NDArray[np.uint16]:
    weights = _gauss((llama.seed, place, start, 0), length, _std(llama, place, rank))
    return round_bf16(weights + np.float32(1) if rank == 1 else weights)


def _tuned_block(llama: Llama, number: int, place: int, start: int, base: NDArray[np.uint16], rank: int) -> NDArray[np.uint16]:
    share = np.random.default_rng((llama.seed, place, number)).uniform(llama.delta_low, llama.delta_high)
    std = share * (1.0 if rank == 1 else _std(llama, place, rank))
    return round_bf16(to_f32(base, BF16) + _gauss((llama.seed, place, start, number), len(base), std))


def _std(llama: Llama, place: int, rank: int) -> float:
    spread = np.random.default_rng((llama.seed, place)).uniform(1 / 1.5, 1.5)
    return float(llama.weight_std * spread) if rank > 1 else llama.weight_std


def _gauss(seed: Sequence[int], length: int, std: float) -> NDArray[np.float32]:
    noise = np.random.Generator(np.random.SFC64(list(seed))).standard_normal(length, np.float32)
    noise *= np.float32(std)
    return noise


def main() -> int:
    gigabytes, finetunes = float(sys.argv[1]), int(sys.argv[2])
    family = build(llama_of_size(gigabytes), finetunes)
    for folder in (family.base, *family.tuned):
        print(folder)
    matrix = "model.layers.0.mlp.up_proj.weight"
    print(f"{family.llama.numel:,} weights; {100 * equal_share(family, matrix):.1f} % of {matrix} are equal in base and tuned1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
