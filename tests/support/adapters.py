"""A small base, adapters of it as PEFT saves them, and the tensors that come of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deltapack.adapters import open_adapted
from deltapack.checkpoint import open_checkpoint
from support.builders import Model, Tensor, random_tensor, whole, write_file

START = "base_model.model."
ROWS, COLUMNS, WORDS = 24, 36, 50


def base_model(dtype: str = "f32") -> Model:
    return {
        "embed.weight": random_tensor(1, (WORDS, COLUMNS), dtype),
        "layer.down.weight": random_tensor(2, (ROWS, COLUMNS), dtype),
        "layer.square.weight": random_tensor(3, (ROWS, ROWS), dtype),
        "layer.conv.weight": random_tensor(4, (ROWS, 6, 2, 3), dtype),
        "layer.down.bias": random_tensor(5, (ROWS,), dtype),
        "layer.norm.weight": random_tensor(6, (COLUMNS,), dtype),
        "positions": whole("i64", np.arange(9)),
    }


def lora(module: str, rows: int, columns: int, rank: int = 4, dtype: str = "f32") -> Model:
    """Factors of a module, by name."""
    parts = {"lora_A": (rank, columns), "lora_B": (rows, rank)}
    return {f"{START}{module}.{part}.weight": random_tensor(sum(map(ord, module + part)), shape, dtype) for part, shape in parts.items()}


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, str] | None = None, **config: Any) -> Path:
    folder.mkdir()
    write_file(folder / "adapter_model.safetensors", tensors)
    settings: dict[str, object] = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "alpha": 6} | config
    for name, text in {"adapter_config.json": json.dumps(settings), **(files or {})}.items():
        (folder / name).write_text(text)
    return folder


def merged(base: Path, adapter: Path) -> Model:
    """All tensors of the view, each read whole."""
    with open_checkpoint(base) as files, open_adapted(files, adapter) as view:
        return {name: Tensor(info.dtype.name, view.read(name).reshape(info.shape)) for name, info in view.tensors.items()}
