"""Tensors that a checkpoint stores twice: equal in the base and in the fine-tune, they come back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import deltapack
from deltapack import Budget, Override, Recipe
from deltapack.checkpoint import open_checkpoint
from deltapack.packing.alike import leaders

Tensors = dict[str, NDArray[Any]]
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
RECIPES = [
    Recipe(),
    Recipe(budget=Budget(bits=1)),
    Recipe(budget=Budget(quality="small")),
    Recipe(drop_rate=0.9),
    Recipe(values="ternary", drop_rate=0.5),
    Recipe(drop_rate=0.7, sparsify="magnitude"),
    Recipe(drop_rate=0.7, sparsify="della"),
]


def models(rows: int = 512, more: int = 0, moved: float = 1.0) -> tuple[Tensors, Tensors]:
    """Return a model whose head is its embedding, and a fine-tune with so many more rows, of whose rows this share moved."""
    random = np.random.default_rng(0)
    base = {
        EMBED: random.normal(size=(rows, 48)).astype(np.float32),
        "layers.0.up_proj.weight": random.normal(size=(128, 48)).astype(np.float32),
    }
    tuned = {name: tensor + random.normal(scale=1e-2, size=tensor.shape).astype(np.float32) for name, tensor in base.items()}
    still = random.random(rows) >= moved
    tuned[EMBED][still] = base[EMBED][still]
    tuned[EMBED] = np.concatenate([tuned[EMBED], random.normal(size=(more, 48)).astype(np.float32)])
    return base | {HEAD: base[EMBED]}, tuned | {HEAD: tuned[EMBED]}


def restored(folder: Path, base: Tensors, tuned: Tensors, recipe: Recipe, workers: int = 2) -> Tensors:
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    paths = folder / "base.safetensors", folder / "tuned.safetensors", folder / "x.dpk"
    deltapack.compress(*paths, recipe=recipe, workers=workers, force=True)
    deltapack.apply(paths[0], paths[2], folder / "out.safetensors", force=True)
    return load_file(folder / "out.safetensors")


def leaders_of(folder: Path, base: Tensors, tuned: Tensors) -> dict[str, str]:
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    with open_checkpoint(folder / "base.safetensors") as first, open_checkpoint(folder / "tuned.safetensors") as second:
        return leaders(first, second, {name: name for name in tuned if name in base}, 2)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe.to_json().get("target", f"{recipe.sparsify}-{recipe.values}")))
@pytest.mark.parametrize(("rows", "more", "moved"), [(512, 0, 1.0), (512, 7, 1.0), (4608, 0, 0.2), (4608, 3, 1.0)])
def test_what_is_stored_twice_comes_back_equal(recipe: Recipe, rows: int, more: int, moved: float, tmp_path: Path) -> None:
    base, tuned = models(rows, more, moved)
    found = restored(tmp_path, base, tuned, recipe)
    assert sorted(found) == sorted(tuned)
    assert np.array_equal(found[HEAD].view(np.uint32), found[EMBED].view(np.uint32))
    assert not np.array_equal(found[EMBED], tuned[EMBED])  # else nothing is shown: it is lossy
    assert not np.array_equal(found[EMBED][:rows], base[EMBED])


def test_a_budget_counts_both(tmp_path: Path) -> None:
    base, tuned = models(4608)
    restored(tmp_path, base, tuned, Recipe(budget=Budget(size=200_000)))
    assert 0.98 * 200_000 <= (tmp_path / "x.dpk").stat().st_size <= 1.005 * 200_000


def test_the_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    base, tuned = models()
    packs = set()
    for workers in (1, 2, 5):
        restored(tmp_path, base, tuned, Recipe(), workers)
        packs.add((tmp_path / "x.dpk").read_bytes())
    assert len(packs) == 1


def test_settings_for_one_of_them_hold(tmp_path: Path) -> None:
    base, tuned = models()
    found = restored(tmp_path, base, tuned, Recipe(overrides=(Override("lm_head.*", role="exact"),)))
    assert np.array_equal(found[HEAD], tuned[HEAD]) and not np.array_equal(found[EMBED], tuned[EMBED])


def test_a_head_leads(tmp_path: Path) -> None:
    assert leaders_of(tmp_path, *models()) == {EMBED: HEAD}
    base, tuned = models()
    for model in (base, tuned):
        model["embed_in.weight"], model["embed_out.weight"] = model.pop(EMBED), model.pop(HEAD)
    assert leaders_of(tmp_path, base, tuned) == {"embed_in.weight": "embed_out.weight"}


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("place", [(0, 0), (300, 5), (22000, 17)])
def test_one_element_more_or_less(side: str, place: tuple[int, int], tmp_path: Path) -> None:
    base, tuned = models(22_528)  # more than one chunk
    assert leaders_of(tmp_path, base, tuned) == {EMBED: HEAD}
    changed = base if side == "base" else tuned
    changed[HEAD] = changed[HEAD].copy()
    changed[HEAD].view(np.uint32)[place] ^= 1
    assert leaders_of(tmp_path, base, tuned) == {}


def test_of_several_kinds_each_has_a_leader(tmp_path: Path) -> None:
    base, tuned = models()
    base |= {f"zeros.{number}.weight": np.zeros((8, 6), np.float32) for number in range(4)}
    tuned |= {f"zeros.{number}.weight": np.full((8, 6), number // 2, np.float32) for number in range(4)}
    tuned["zeros.3.weight"][2, 2] = 5  # between the few elements that are looked at first there are others
    assert leaders_of(tmp_path, base, tuned) == {EMBED: HEAD, "zeros.1.weight": "zeros.0.weight"}


def test_vectors_and_other_shapes_are_each_their_own(tmp_path: Path) -> None:
    base: Tensors = {name: np.ones(64, np.float32) for name in ("a.norm.weight", "b.norm.weight")}
    base |= {"c.weight": np.ones((4, 6), np.float32), "d.weight": np.ones((6, 4), np.float32), "e.weight": np.ones((4, 6), np.float16)}
    assert leaders_of(tmp_path, base, base) == {}
