"""A tiny Llama, three fine-tunes of it and their packs, all on values where f32 is exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import Model, Tensor, read_model, write_folder
from support.fixtures import as_weights

import deltapack
from deltapack import Recipe

HIDDEN, INNER, VOCABULARY, LAYERS = 32, 48, 40, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
}
DROP_RATES = (0.5, 0.5, 0.0)


def shapes() -> dict[str, tuple[int, ...]]:
    square, wide, tall = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    out["lm_head.weight"] = (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        out |= {f"{start}self_attn.{name}_proj.weight": square for name in "qkvo"}
        out |= {f"{start}mlp.{name}_proj.weight": wide for name in ("gate", "up")} | {f"{start}mlp.down_proj.weight": tall}
        out |= {f"{start}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return out


@dataclass(frozen=True)
class Family:
    """Folders of the base and of the restored fine-tunes, and the packs."""

    folder: Path
    base: Path
    packs: tuple[Path, ...]
    restored: tuple[Path, ...]

    def pack(self, name: str, differences: Mapping[str, Any], scale: float = 2.0**-10) -> tuple[Path, Path]:
        """A pack that drops nothing of base + scale * differences, and what it restores."""
        base, folder = read_model(self.base), self.folder / name
        tuned = {key: Tensor("f32", (tensor.f64 + scale * differences[key]).astype("<f4")) for key, tensor in base.items()}
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder, tuned, {"config.json": json.dumps(CONFIG)})
        pack = self.folder / f"{name}.dpk"
        deltapack.compress(self.base, folder, pack, recipe=Recipe(drop_rate=0, values="f32"), force=True)
        return pack, folder

    def ours(self, count: int = 3, **options: object) -> Model:
        """What deltapack merges from the packs."""
        out = self.folder / "ours"
        deltapack.merge(self.base, self.packs[:count], out, force=True, **options)  # type: ignore[arg-type]
        return read_model(out)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Integers times 2^-10; dropped with rate 1/2 and rescaled by 2, and not dropped."""
    folder = tmp_path_factory.mktemp("peers")
    rng = np.random.default_rng(0)

    def model(base: Model | None, size: int) -> Model:
        out = {}
        for name, shape in shapes().items():
            value = rng.integers(-size, size + 1, shape) * 2.0**-10
            out[name] = Tensor("f32", (value + (base[name].f64 if base else 0)).astype("<f4"))
        return out

    files = {"config.json": json.dumps(CONFIG)}
    base = model(None, 1000)
    write_folder(folder / "base", base, files)
    packs, restored = [], []
    for number, drop_rate in enumerate(DROP_RATES):
        write_folder(folder / f"tuned{number}", model(base, 4), files)
        packs.append(folder / f"tuned{number}.dpk")
        recipe = Recipe(drop_rate=drop_rate, values="f32", seed=number, overrides=as_weights(base))
        deltapack.compress(folder / "base", folder / f"tuned{number}", packs[-1], recipe=recipe)
        restored.append(folder / f"restored{number}")
        deltapack.apply(folder / "base", packs[-1], restored[-1])
    return Family(folder, folder / "base", tuple(packs), tuple(restored))
