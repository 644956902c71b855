"""A pair of tiny checkpoints with cards, and the pack between them, to publish."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import deltapack
from support.hub import Hub, Repo

BASE_CARD = "---\nlicense: apache-2.0\nlanguage: [en, no]\npipeline_tag: text-generation\ntags: [chat, 'region:us']\n---\nThe base.\n"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@dataclass(frozen=True)
class Pair:
    """A base, a fine-tune of it, and the pack between them."""

    base: Path
    tuned: Path
    pack: Path


def _write(folder: Path, change: float, files: dict[str, str]) -> Path:
    folder.mkdir()
    random, moved = np.random.default_rng(0), np.random.default_rng(1)
    weight = random.standard_normal((60, 80), np.float32) + change * moved.standard_normal((60, 80), np.float32)
    save_file({"a.weight": weight, "a.bias": np.full(60, change, np.float32)}, folder / "model.safetensors", {"format": "pt"})
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def make_pair(folder: Path, card: str | None = None, *, config: bool = True, **recipe: Any) -> Pair:
    """Make a pair in a folder, whose name the pack gets; `card` is that of the fine-tune."""
    folder.mkdir()
    own = {"config.json": json.dumps(CONFIG)} if config else {}
    base = _write(folder / "base", 0.0, {**own, "README.md": BASE_CARD})
    tuned = _write(folder / "tuned", 1e-3, {**own, "tokenizer.json": "{}", **({} if card is None else {"README.md": card})})
    pack = folder / f"{folder.name}.dpk"
    deltapack.compress(base, tuned, pack, recipe=deltapack.Recipe(**(recipe or {"drop_rate": 0.5})))
    return Pair(base, tuned, pack)


def with_base(hub: Hub, pair: Pair) -> Hub:
    """Give a hub the base as `org/base`."""
    repo = hub.repos["org/base"] = Repo()
    repo.commit({path.name: path.read_bytes() for path in pair.base.iterdir()})
    return hub
