"""A small model, a fine-tune of it and its pack, and a way to run the command line inside the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

import deltapack
from deltapack.cli.main import cli


@dataclass(frozen=True)
class Pair:
    """Two checkpoint folders and the pack between them."""

    base: Path
    finetuned: Path
    pack: Path
    report: deltapack.CompressReport


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a fine-tune with a changed, an unchanged, a new and a removed tensor, and a changed side file."""
    folder = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 50)).astype(np.float32)
    delta = random.normal(scale=1e-3, size=(40, 50)).astype(np.float32)
    same = np.arange(6, dtype=np.int64)
    base = {"a.weight": weight, "same": same, "old": np.ones(3, np.float32)}
    finetuned = {"a.weight": weight + delta, "same": same, "head": np.full((2, 2), 0.5, np.float32)}
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"name": name}))
    pack = folder / "pack.dpk"
    recipe = deltapack.Recipe(drop_rate=0.5, values="int8")
    report = deltapack.compress(folder / "base", folder / "finetuned", pack, recipe=recipe)
    return Pair(folder / "base", folder / "finetuned", pack, report)


@pytest.fixture
def run() -> Callable[..., Result]:
    """Return a function that runs the command line with these arguments."""

    def call(*args: object) -> Result:
        return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="deltapack")

    return call


class Recorder:
    """Stands in for a use case: remembers how it was called, and returns or raises what it was given."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        self.args, self.kwargs = args, kwargs
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], Recorder]:
    """Return a function that replaces a public use case by a recorder with this outcome."""

    def replace(name: str, outcome: object) -> Recorder:
        recorder = Recorder(outcome)
        monkeypatch.setattr(deltapack, name, recorder, raising=False)
        return recorder

    return replace
