"""Budgets where a few elements, rows or directions hold a difference: codes must not make it many times larger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import deltapack

NAME, SIZE = "model.layers.0.mlp.up_proj.weight", 256


def outlier() -> NDArray[np.float32]:
    delta = np.random.default_rng(1).normal(0, 1e-3, (SIZE, SIZE)).astype(np.float32)
    delta[5, 7] = 0.5
    return delta


def rows(count: int) -> NDArray[np.float32]:
    delta = np.zeros((SIZE, SIZE), np.float32)
    delta[:count] = np.random.default_rng(2).normal(0, 1e-3, (count, SIZE))
    return delta


def product() -> NDArray[np.float32]:
    left, right = np.random.default_rng(3).normal(size=(2, SIZE)).astype(np.float32)
    return np.outer(left, right) * np.float32(1e-3)


@pytest.mark.parametrize(
    ("delta", "most"),
    [(outlier(), 6.0), (rows(1), 0.5), (rows(4), 0.8), (rows(16), 1.5), (product(), 0.5)],
    ids=["outlier", "row", "4 rows", "16 rows", "product"],
)
@pytest.mark.parametrize("budget", [deltapack.Budget(quality="balanced"), deltapack.Budget(quality="high")], ids=str)
def test_what_is_restored_is_near(delta: NDArray[np.float32], most: float, budget: deltapack.Budget, tmp_path: Path) -> None:
    """Without a look at what codes make of such directions, errors were 5 to 300 times as large as the difference."""
    base = np.random.default_rng(0).normal(0, 0.02, (SIZE, SIZE)).astype(np.float32)
    before, after, pack, out = (tmp_path / name for name in ("base.safetensors", "tuned.safetensors", "p.dpk", "out.safetensors"))
    save_file({NAME: base}, before)
    save_file({NAME: base + delta}, after)
    deltapack.compress(before, after, pack, recipe=deltapack.Recipe(budget=budget))
    deltapack.apply(before, pack, out)
    restored = load_file(out)[NAME] - base
    error = np.linalg.norm(restored - delta) / np.linalg.norm(delta)
    gain = float((restored * delta).sum() / np.square(delta).sum())
    assert error < most
    assert gain == pytest.approx(1, abs=0.25)
