"""`density` by chance: each pack, tensor and chunk is thinned out by random numbers of its own, and rescaled."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.builders import CHUNK, Model, Tensor, cast, random_tensor, tuned_model

import deltapack

PackOf = Callable[..., Path]
Merged = Callable[..., Model]
SIGMAS = 5.0
NUMEL = 60_000


def by_chance(one: NDArray[np.bool_], other: NDArray[np.bool_], density: float) -> bool:
    """Whether two masks of this density share about density^2 of the elements."""
    expected = len(one) * density**2
    return bool(abs(np.count_nonzero(one & other) - expected) < SIGMAS * math.sqrt(expected * (1 - density**2)))


@pytest.fixture
def packs(pack_of: PackOf) -> tuple[Model, list[Path]]:
    """Three packs that add 1, 256 and 65,536 to every element of a base of zeros: the sum tells who kept what."""
    base = {name: cast(np.zeros(NUMEL), "f32") for name in ("a", "b")}
    made = [
        pack_of(base, {name: cast(np.full(NUMEL, 256.0**number), "f32") for name in base}, f"{number}", drop_rate=0, values="f32")
        for number in range(3)
    ]
    return base, made


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_masks_of_packs_and_tensors_are_independent(packs: tuple[Model, list[Path]], merged: Merged, method: str) -> None:
    density, (_, made) = 0.25, packs
    result = merged(made, method=method, density=density, parameters={"normalize": 0})
    kept = []
    for name in ("a", "b"):
        total = result[name].f64 * density  # rescaled by 4, exactly
        parts = [np.floor_divide(total, 256.0**number) % 256 for number in range(3)]
        assert all(set(np.unique(part)) == {0.0, 1.0} for part in parts)
        kept += [part == 1 for part in parts]
    for mask in kept:
        assert abs(mask.sum() - NUMEL * density) < SIGMAS * math.sqrt(NUMEL * density * (1 - density))
    assert all(by_chance(one, other, density) for one, other in combinations(kept, 2))


def test_each_pack_has_its_own_density_and_keeps_its_mask_in_any_company(packs: tuple[Model, list[Path]], merged: Merged) -> None:
    _, made = packs
    densities: list[Any] = [0.125, 0.5, 0.25]
    options = {"method": "dare_linear", "parameters": {"normalize": 0}}
    alone = [merged([path], density=density, **options)["a"].f64 for path, density in zip(made, densities, strict=True)]
    together = merged(made, density=densities, **options)["a"].f64
    assert np.array_equal(together, sum(alone))
    for number, (values, density) in enumerate(zip(alone, densities, strict=True)):
        assert set(np.unique(values)) == {0.0, 256.0**number / density}
        count = np.count_nonzero(values)
        assert abs(count - NUMEL * density) < SIGMAS * math.sqrt(NUMEL * density * (1 - density))


def test_thinning_does_not_follow_the_mask_of_the_pack(pack_of: PackOf, merged: Merged) -> None:
    """Of what a pack kept by chance, a share stays by other random numbers: its places say nothing of which."""
    base = {"w": cast(np.zeros(NUMEL), "f32")}
    pack = pack_of(base, {"w": cast(np.ones(NUMEL), "f32")}, drop_rate=0.5, values="f32", rescale=1)
    with deltapack.open_pack(pack) as opened:
        places, _ = opened["w"].to_sparse()
    left = merged([pack], method="dare_linear", density=0.25, parameters={"normalize": 0})["w"].f64
    stay = np.flatnonzero(left)
    assert np.isin(stay, places).all()
    assert abs(len(stay) - NUMEL / 4) < SIGMAS * math.sqrt(NUMEL / 4)
    # Were the same numbers drawn for the gaps and the elements, how far the one before is would tell who stays.
    gaps, stays = np.diff(places, prepend=-1), np.isin(places, stay)
    for gap in (1, 2, 3):
        share = stays[gaps == gap].mean()
        assert abs(share - stays.mean()) < SIGMAS * math.sqrt(0.25 / np.count_nonzero(gaps == gap))


def test_chunks_have_their_own_numbers(pack_of: PackOf, merged: Merged) -> None:
    numel = 4 * CHUNK + 1000
    base = {"w": Tensor("f8_e5m2", np.zeros(numel, np.uint8))}
    pack = pack_of(base, {"w": cast(np.ones(numel, np.float32), "f8_e5m2")}, drop_rate=0, values="int2")
    kept = merged([pack], method="dare_linear", density=0.5)["w"].bits != 0
    masks = [kept[start : start + CHUNK] for start in range(0, 4 * CHUNK, CHUNK)]
    assert all(by_chance(one, other, 0.5) for one, other in combinations(masks, 2))
    assert by_chance(masks[0][:1000], kept[4 * CHUNK :], 0.5)


def test_a_live_model_and_a_merged_pack_thin_out_alike(pack_of: PackOf, merged: Merged, applied: Merged, tmp_path: Path) -> None:
    import torch

    base = {"w": random_tensor(3, (50, 40))}
    made = [pack_of(base, tuned_model(base, seed), f"{seed}", drop_rate=0.2, values="f32") for seed in (4, 5)]
    options: dict[str, Any] = {"method": "dare_linear", "density": [0.3, 0.4]}
    expected = merged(made, **options)
    deltapack.merge(tmp_path / "base.safetensors", made, tmp_path / "merged.dpk", **options)
    assert applied(tmp_path / "merged.dpk") == expected
    state = {"w": torch.from_numpy(base["w"].bits.copy())}
    deltapack.attach(state, backend="cpu").activate(dict.fromkeys(made, 1.0), **options)
    assert state["w"].numpy().tobytes() == expected["w"].raw
