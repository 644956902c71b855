"""A training run without training: checkpoints of a small model, each a little away from the one before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from support.builders import Model, Tensor, moved, random_tensor, read_model, whole, write_folder

FILES = {"config.json": "{}"}


def base_model() -> Model:
    return {"a.weight": random_tensor(1, (40, 30), "bf16"), "b.bias": random_tensor(2, (33,)), "ids": whole("i64", range(5))}


def step_model(step: int) -> Model:
    """The model after some steps: a few elements are others at each of them."""
    model = base_model()
    for number in range(1, step + 1):
        chosen = np.random.default_rng(number).random(model["a.weight"].shape) < 0.05
        bits = np.where(chosen, moved(model["a.weight"], number, 0.1).bits, model["a.weight"].bits)
        model["a.weight"] = Tensor("bf16", bits)
        model["b.bias"] = moved(model["b.bias"], number)
    return model


def write_base(folder: Path) -> Path:
    write_folder(folder, base_model(), FILES)
    return folder


def write_step(folder: Path, step: int) -> Path:
    """Write `checkpoint-N` as a trainer does, with what is of no use to the model."""
    path = folder / f"checkpoint-{step}"
    write_folder(path, step_model(step), FILES)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"):
        (path / name).write_bytes(f"{name} of {step}".encode())
    return path


def weights_of(folder: Path) -> dict[str, str]:
    """The sha256 of each file of weights, and of an index of shards."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same_model(folder: Path, step: int) -> bool:
    """Whether a folder holds the model of a step, bit for bit."""
    return read_model(folder / "model.safetensors") == step_model(step)
