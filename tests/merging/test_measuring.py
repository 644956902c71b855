"""The merge algebra: laws that hold for every method, whatever the packs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.builders import Model, Tensor, random_tensor, read_model, tuned_model, write_file
from support.fixtures import as_weights
from support.laws import examples

import deltapack
from deltapack import Recipe
from deltapack.errors import RecipeError
from deltapack.merging.methods.table import METHODS, REFUSED, SEMANTICS, find_method
from deltapack.sparsify.table import SPARSIFIERS

WEIGHTS = st.floats(-2, 2, width=32)
laws = examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
SINGLE = [(name, tool) for name, variants in METHODS.items() for tool in variants if name not in ("ram", "ramplus_tl", "model_stock")]
"""Methods whose merge of one pack is that pack: RAM drops what is below epsilon, model stock needs two."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base of bf16 and f32 tensors and three packs of it with random masks, stored masks and no mask."""
    folder = tmp_path_factory.mktemp("laws")
    base = {
        "layers.0.w": random_tensor(1, (70, 40), "bf16"),
        "layers.1.w": random_tensor(2, (900,), "f32"),
        "wide": random_tensor(3, (65_536 + 40,), "bf16"),
        "double": random_tensor(4, (300,), "f64"),
    }
    write_file(folder / "base.safetensors", base)
    packs = []
    for number, recipe in enumerate(
        (
            Recipe(drop_rate=0.5, values="int4"),
            Recipe(drop_rate=0.9, values="f32", index="gaps"),
            Recipe(drop_rate=0.0, values="bf16"),
        )
    ):
        write_file(folder / "tuned.safetensors", tuned_model(base, 50 + 10 * number))
        packs.append(folder / f"{number}.dpk")
        made = replace(recipe, overrides=as_weights(base))
        deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", packs[-1], recipe=made)
    return folder, packs


def merge(folder: Path, packs: list[Path], **options: Any) -> Model:
    out = folder / "merged.safetensors"
    deltapack.merge(folder / "base.safetensors", packs, out, force=True, **options)
    return read_model(out)


def apply(folder: Path, pack: Path) -> Model:
    deltapack.apply(folder / "base.safetensors", pack, folder / "applied.safetensors", force=True)
    return read_model(folder / "applied.safetensors")


@pytest.mark.parametrize(("method", "semantics"), SINGLE)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_pack_with_weight_one_is_applying_it(family: tuple[Path, list[Path]], method: str, semantics: str, number: int) -> None:
    folder, packs = family
    assert merge(folder, [packs[number]], method=method, semantics=semantics) == apply(folder, packs[number])


@pytest.mark.parametrize("method", ["ties", "dare_ties", "sce", "ram", "ramplus_tl", "model_stock", "average"])
def test_two_packs_in_any_order(family: tuple[Path, list[Path]], method: str) -> None:
    """Adding two numbers commutes; of three, rounding makes the order matter, so packs are added in the order given."""
    folder, packs = family
    chosen = [packs[0], packs[2]] if method == "model_stock" else packs[:2]
    assert merge(folder, chosen, method=method) == merge(folder, chosen[::-1], method=method)


@laws
@given(weights=st.lists(WEIGHTS, min_size=3, max_size=3), normalize=st.booleans(), density=st.sampled_from([None, 0.3, 0.05]))
def test_a_merged_pack_is_the_merge(family: tuple[Path, list[Path]], weights: list[float], normalize: bool, density: float | None) -> None:
    folder, packs = family
    options = {"method": "ties", "weights": weights, "density": density, "parameters": {"normalize": normalize}}
    merged = folder / "merged.dpk"
    deltapack.merge(folder / "base.safetensors", packs, merged, force=True, **options)  # type: ignore[arg-type]
    assert apply(folder, merged) == merge(folder, packs, **options)
    deltapack.verify(merged, folder / "base.safetensors")


@laws
@given(weight=WEIGHTS, other=WEIGHTS)
def test_linear_merge_of_a_merged_pack_is_linear(family: tuple[Path, list[Path]], weight: float, other: float) -> None:
    folder, packs = family
    merged = folder / "inner.dpk"
    deltapack.merge(folder / "base.safetensors", packs[:2], merged, method="ties", force=True)
    result = merge(folder, [merged, packs[2]], weights=[weight, other])
    base = read_model(folder / "base.safetensors")["layers.1.w"].bits
    total = np.zeros(base.shape, np.float32)
    for path, factor in ((merged, weight), (packs[2], other)):
        with deltapack.open_pack(path) as pack:
            positions, values = pack["layers.1.w"].to_sparse()
        total[positions] += values * np.float32(factor)
    assert result["layers.1.w"] == Tensor("f32", base + total)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_random_thinning_does_not_depend_on_workers(family: tuple[Path, list[Path]], method: str) -> None:
    folder, packs = family
    results = [merge(folder, packs, method=method, density=0.2, workers=workers) for workers in (1, 4)]
    assert results[0] == results[1] != merge(folder, packs, method=method)


def test_an_unchanged_tensor_counts_as_a_pack(tmp_path: Path) -> None:
    base = {"x": random_tensor(1, (500,)), "y": random_tensor(2, (500,))}
    write_file(tmp_path / "base.safetensors", base)
    packs, recipe = [], Recipe(drop_rate=0.9, overrides=as_weights(base))
    for number, changed in enumerate(("x", "y")):
        tuned = tuned_model(base, number * 10)
        write_file(tmp_path / "tuned.safetensors", dict(base) | {changed: tuned[changed]})
        packs.append(tmp_path / f"{number}.dpk")
        deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", packs[-1], recipe=recipe)
    assert merge(tmp_path, packs, method="average") == merge(tmp_path, packs, weights=[0.5])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_methods_that_need_dense_models_are_refused(name: str) -> None:
    with pytest.raises(RecipeError) as error:
        find_method(name)
    assert REFUSED[name] in str(error.value) and "deltapack apply" in str(error.value)


def test_every_method_says_what_it_computes() -> None:
    for variants in METHODS.values():
        for tool, method in variants.items():
            assert tool in SEMANTICS and method.text.startswith("base + ")
            assert method.made_by is None or method.made_by in SPARSIFIERS


@pytest.mark.parametrize("options", [{"method": "model_stock"}, {"method": "dare_linear", "density": 0.95}])
def test_what_turns_out_to_be_a_sum_is_merged_like_one(family: tuple[Path, list[Path]], options: dict[str, Any]) -> None:
    """The merged pack holds the packs' own streams, not a sum of 32 bits per element."""
    folder, packs = family
    chosen, merged = [packs[0], packs[2]] if options["method"] == "model_stock" else packs[:2], folder / "sum.dpk"
    deltapack.merge(folder / "base.safetensors", chosen, merged, force=True, **options)
    assert apply(folder, merged) == merge(folder, chosen, **options)
    with deltapack.open_pack(merged) as pack:
        entry = next(entry for entry in pack.index.entries if entry.name == "wide")
    assert [term.values for term in entry.terms] == (["int4", "bf16"] if options["method"] == "model_stock" else ["int4", "f32"])
    assert entry.terms[0].index == "seeded"


def test_a_tensor_that_no_pack_changes_is_unchanged(tmp_path: Path) -> None:
    base = {"x": random_tensor(1, (500,)), "y": random_tensor(2, (500,))}
    write_file(tmp_path / "base.safetensors", base)
    packs = [tmp_path / f"{number}.dpk" for number in range(2)]
    for number, path in enumerate(packs):
        write_file(tmp_path / "tuned.safetensors", tuned_model(base, number * 10) | {"x": base["x"]})
        recipe = Recipe(drop_rate=0.9, overrides=as_weights(base))
        deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", path, recipe=recipe)
    merged = tmp_path / "merged.dpk"
    deltapack.merge(tmp_path / "base.safetensors", packs, merged, method="ties")
    with deltapack.open_pack(merged) as pack:
        assert {entry.name: entry.kind for entry in pack.index.entries} == {"x": "unchanged", "y": "delta"}


def test_model_stock_refuses_masks_that_depend_on_the_data(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    merged = folder / "merged for stock.dpk"
    deltapack.merge(folder / "base.safetensors", packs[:2], merged, force=True)
    with pytest.raises(RecipeError, match="random") as error:
        merge(folder, [packs[0], merged], method="model_stock")
    assert error.value.path == merged and error.value.tensor
    with pytest.raises(RecipeError, match="needs more packs"):
        merge(folder, packs[:1], method="model_stock")


def test_a_merged_pack_is_not_thinned_out_at_random(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    merged = folder / "merged for dare.dpk"
    deltapack.merge(folder / "base.safetensors", packs[:2], merged, force=True)
    with pytest.raises(RecipeError, match="at random"):
        merge(folder, [merged], method="dare_linear", density=0.1)
    merge(folder, [merged], method="ties", density=0.1)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"method": "ram", "weights": [1]}, "weight"),
        ({"method": "average", "weights": [1]}, "weight"),
        ({"method": "linear", "density": 0.5}, "density"),
        ({"method": "della", "density": 0.5}, "--sparsify"),
        ({"method": "ties", "density": 0}, "density"),
        ({"method": "ties", "density": [0.5, 0.5]}, "densities"),
        ({"method": "ties", "parameters": {"gamma": 0.5}}, "gamma"),
        ({"method": "ties", "semantics": "peft", "parameters": {"lambda": 0.5}}, "lambda"),
        ({"method": "ties", "semantics": "paper", "weights": [1]}, "weight"),
        ({"method": "ties", "semantics": "nobody"}, "semantics"),
        ({"method": "sce", "semantics": "peft"}, "semantics"),
        ({"method": "linear", "parameters": {"normalize": 0.5}}, "normalize"),
        ({"method": "linear", "parameters": {"lambda": float("inf")}}, "lambda"),
        ({"method": "linear", "parameters": {"lambda": 10**400}}, "lambda"),
        ({"method": "linear", "parameters": {"nonsense": 1}}, "nonsense"),
        ({"method": "ties", "parameters": {"weight": 0.5}}, "weight is of each pack"),
        ({"method": "ties", "parameters": {"density": 0.5}}, "density is of each pack"),
    ],
)
def test_a_parameter_that_a_method_does_not_know_is_an_error(family: tuple[Path, list[Path]], options: dict[str, Any], what: str) -> None:
    folder, packs = family
    with pytest.raises(RecipeError, match=what):
        merge(folder, packs[:1], **options)


def test_warnings(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    arguments = folder / "base.safetensors", packs[:2], folder / "warned.safetensors"

    def warnings(**options: Any) -> list[str]:
        return list(deltapack.merge(*arguments, force=True, **options).warnings)

    assert any("normalize divides" in warning for warning in warnings(method="ties", weights=[0.5]))
    assert not warnings(method="ties", weights=[0.5], parameters={"normalize": False})
    for method in ("sce", "ram", "ramplus_tl"):
        assert any("plain sum" in warning for warning in warnings(method=method))
    assert any("plain sum" in warning for warning in warnings(method="ties", semantics="paper"))
    assert any("plain sum" in warning for warning in warnings(method="ties", semantics="peft", weights=[0.5]))
    assert not warnings(method="average")
    assert any("made with dare, not della" in warning for warning in warnings(method="della_linear", weights=[0.5]))
    assert any("add up to 2" in warning for warning in warnings(method="dare_ties", weights=[1]))
