"""Differences of any size that f32 has: what comes back is right, or an error of our own says why not; nothing warns.

pytest turns warnings into errors (pyproject.toml), also those of worker threads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.laws import examples

import deltapack
from deltapack import Budget, Recipe
from deltapack.errors import NonFiniteError, RecipeError
from deltapack.packing.recipe import VALUE_CHOICES

SHAPE = (96, 128)
DROPPING = [
    *(Recipe(drop_rate=rate, values=values) for values in VALUE_CHOICES if values != "f16" for rate in (0.0, 0.5)),
    *(Recipe(drop_rate=0.5, sparsify=name) for name in ("dare", "magnitude", "della", "breadcrumbs")),
]
BUDGETS = [Recipe(budget=budget) for budget in (Budget(bits=4), Budget(quality="high"), Budget(quality="balanced"))]
LARGEST = float(np.finfo(np.float32).max)


def restored(folder: Path, size: float, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return a difference of about this size, and what comes back of it."""
    unit = np.random.default_rng(0).normal(size=SHAPE)
    wanted = np.clip(unit * size, -LARGEST, LARGEST).astype(np.float32)
    base, tuned, pack, out = (folder / name for name in ("base.safetensors", "tuned.safetensors", "x.dpk", "out.safetensors"))
    save_file({"w.weight": np.zeros(SHAPE, np.float32)}, base)
    save_file({"w.weight": wanted}, tuned)
    deltapack.compress(base, tuned, pack, recipe=recipe, allow_unrelated=True, force=True)
    deltapack.apply(base, pack, out, force=True)
    return wanted.astype(np.float64), load_file(out)["w.weight"].astype(np.float64)


@pytest.mark.parametrize("recipe", DROPPING, ids=lambda recipe: f"{recipe.sparsify or recipe.values}-{recipe.drop_rate}")
@examples(6)
@given(exponent=st.floats(-25, 38.5))
@example(exponent=19.0)
@example(exponent=37.5)
@example(exponent=38.5)
def test_differences_of_any_size(recipe: Recipe, exponent: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        wanted, found = restored(tmp_path_factory.mktemp("size"), 10.0**exponent, recipe)
    except NonFiniteError as error:
        assert exponent > 36 and ("overflows" in str(error) or "too large" in str(error))
        return
    assert np.isfinite(found).all()
    gain = (found * wanted).sum() / np.square(wanted).sum()
    assert abs(gain - 1) < 0.25 or (recipe.sparsify in ("magnitude", "breadcrumbs") and 0.3 < gain < 1)


@pytest.mark.parametrize("recipe", BUDGETS, ids=lambda recipe: recipe.budget.text)
@examples(6)
@given(exponent=st.floats(-25, 38.5))
@example(exponent=19.0)
@example(exponent=38.5)
def test_budgets_for_differences_of_any_size(recipe: Recipe, exponent: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        wanted, found = restored(tmp_path_factory.mktemp("size"), 10.0**exponent, recipe)
    except (NonFiniteError, RecipeError):
        assert exponent > 17
        return
    assert np.isfinite(found).all()
    assert (found * wanted).sum() > 0
