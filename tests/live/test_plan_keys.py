"""Plans are remembered by everything that decides them: two activations that differ in one argument are two plans."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.builders import TORCH, Model, random_tensor, tuned_model, whole
from support.interpreting import DEVICE

import deltapack
from deltapack.errors import RecipeError

PackOf = Callable[..., Path]
Merged = Callable[..., Model]
BACKENDS = ["torch"] if DEVICE == "cuda" else ["cpu", "torch"]


def state_of(model: Model) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(tensor.bits.copy()).view(TORCH.get(tensor.dtype, torch.int64)).to(DEVICE) for name, tensor in model.items()
    }


def raw(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


def raw_model(model: Model) -> dict[str, bytes]:
    return {name: tensor.raw for name, tensor in model.items()}


@pytest.fixture
def family(pack_of: PackOf) -> tuple[Model, list[Path]]:
    """Three packs that add to one tensor and disagree on another."""
    base = {"w": random_tensor(0, (90, 70)), "ids": whole("i64", np.arange(5))}
    packs = []
    for seed in range(3):
        tuned = tuned_model(base, 10 * seed, scale=0.1) | {"ids": whole("i64", np.arange(5) + seed + 1)}
        packs.append(pack_of(base, tuned, f"{seed}", drop_rate=0.3, values="f32"))
    return base, packs


def activations() -> Iterator[tuple[list[int], list[float], dict[str, Any]]]:
    """Packs by number in order, their weights, and the arguments; each differs from a neighbour in one thing alone."""
    ones = [1.0, 1.0, 1.0]
    yield [0, 1, 2], ones, {"prefer": 0}
    yield [0, 1, 2], ones, {"prefer": 1}
    yield [2, 1, 0], ones, {"prefer": 1}
    yield [0, 1, 2], [1.0, 0.5, 0.25], {"prefer": 1}
    yield [0, 1, 2], [0.25, 0.5, 1.0], {"prefer": 1}
    yield [0, 1], [1.0, 0.5], {"prefer": 1}
    yield [0, 1, 2], ones, {"prefer": 1, "parameters": {"lambda": 0.5}}
    yield [0, 1, 2], ones, {"prefer": 1, "parameters": {"lambda": 0.25}}
    yield [0, 1, 2], ones, {"prefer": 1, "parameters": {"normalize": 1}}
    yield [0, 1, 2], ones, {"prefer": 1, "method": "ties"}
    yield [0, 1, 2], [1.0, 0.5, 0.25], {"prefer": 1, "method": "ties"}
    yield [0, 1, 2], [1.0, 0.5, 0.25], {"prefer": 1, "method": "ties", "semantics": "peft"}
    yield [0, 1, 2], ones, {"prefer": 1, "method": "ties", "density": 0.2}
    yield [0, 1, 2], ones, {"prefer": 1, "method": "dare_linear", "density": 0.2}
    yield [0, 1, 2], ones, {"prefer": 1, "method": "dare_linear", "density": [0.2, 0.3, 0.4]}
    yield [0, 1, 2], ones, {"prefer": 1, "method": "dare_linear", "density": [0.4, 0.3, 0.2]}
    yield [0, 1, 2], ones, {"prefer": 2, "method": "dare_linear", "density": [0.4, 0.3, 0.2]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_live_model_takes_them_all_and_again(family: tuple[Model, list[Path]], merged: Merged, backend: str) -> None:
    base, packs = family
    state = state_of(base)
    live = deltapack.attach(state, backend=backend)
    asked: list[tuple[dict[str | Path, float], dict[str, Any], dict[str, bytes]]] = []
    for numbers, weights, options in activations():
        chosen = [packs[number] for number in numbers]
        arguments = options | {"prefer": packs[options["prefer"]]}
        given = {} if set(weights) == {1.0} else {"weights": weights}
        asked.append((dict(zip(chosen, weights, strict=True)), arguments, raw_model(merged(chosen, **arguments, **given))))
    # Were two of these the same bits, a plan in place of another would not show.
    assert len({tuple(result.values()) for _, _, result in asked}) == len(asked)
    for given_packs, arguments, expected in [*asked, *reversed(asked)]:
        live.activate(given_packs, **arguments)
        assert raw(state) == expected, arguments
        assert list(live.current.items()) == [(str(path), weight) for path, weight in given_packs.items()]
    live.close()
    assert raw(state) == raw_model(base)


def test_a_relative_path_is_the_file_that_it_named(
    family: tuple[Model, list[Path]], merged: Merged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the process may change: the same words then name another pack, and what was active stays that."""
    base, packs = family
    results = [raw_model(merged([path])) for path in packs]
    for number, path in enumerate(packs):
        folder = path.parent / f"folder {number}"
        folder.mkdir()
        path.rename(folder / "pack.dpk")
    state, first = state_of(base), packs[0].parent / "folder 0"
    live = deltapack.attach(state, backend="torch")
    monkeypatch.chdir(first)
    live.activate("pack.dpk")
    assert raw(state) == results[0]
    os.chdir(first.parent / "folder 1")
    with live.activate("pack.dpk"):
        assert raw(state) == results[1] and live.current == {"pack.dpk": 1.0}
        os.chdir(first.parent / "folder 2")
    assert raw(state) == results[0]
    live.unload("pack.dpk")  # that of folder 2, which nobody knows
    with pytest.raises(RecipeError, match="an active pack cannot be unloaded"):
        live.unload(first / "pack.dpk")
    live.activate("pack.dpk", prefer="pack.dpk")
    assert raw(state) == results[2]
    live.close()
    assert raw(state) == raw_model(base)
