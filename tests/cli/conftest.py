"""A small model, a fine-tune of it and its pack, and a way to run the command line inside the test."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from support.commands import Pair, Run, StandIn

import deltapack


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a fine-tune with a changed, an unchanged, a new and a removed tensor, and a changed side file."""
    folder = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 50)).astype(np.float32)
    delta = random.normal(scale=1e-3, size=(40, 50)).astype(np.float32)
    same = np.arange(6, dtype=np.int64)
    base: dict[str, NDArray[Any]] = {"a.weight": weight, "same": same, "old": np.ones(3, np.float32)}
    finetuned: dict[str, NDArray[Any]] = {"a.weight": weight + delta, "same": same, "head": np.full((2, 2), 0.5, np.float32)}
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"name": name}))
    pack = folder / "pack.dpk"
    recipe = deltapack.Recipe(drop_rate=0.5, values="int8")
    report = deltapack.compress(folder / "base", folder / "finetuned", pack, recipe=recipe)
    return Pair(folder / "base", folder / "finetuned", pack, report)


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)
