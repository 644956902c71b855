"""The explanation of a merge holds the numbers that the merge itself has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import random_tensor, read_model, tuned_model, write_file
from support.fixtures import as_weights

import deltapack
from deltapack import Recipe
from deltapack.errors import RecipeError
from deltapack.merging.methods.table import METHODS
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("explained")
    base = {"layers.0.w": random_tensor(1, (90, 90), "bf16"), "layers.1.w": random_tensor(2, (700,)), "same": random_tensor(3, (50,))}
    write_file(folder / "base.safetensors", base)
    packs, recipe = [], Recipe(drop_rate=0.5, overrides=as_weights(base))
    for number in range(2):
        write_file(folder / "tuned.safetensors", tuned_model(base, 10 * number + 5) | {"same": base["same"]})
        packs.append(folder / f"{number}.dpk")
        deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", packs[-1], recipe=recipe)
    return folder, packs


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("tensor", [None, "layers.1.w"])
def test_the_numbers_are_those_of_the_merge(family: tuple[Path, list[Path]], method: str, tensor: str | None) -> None:
    folder, packs = family
    recipe = MergeRecipe(method)
    report = deltapack.explain_merge(folder / "base.safetensors", packs, tensor, recipe=recipe)
    deltapack.merge(folder / "base.safetensors", packs, folder / "out.safetensors", recipe=recipe, force=True)
    result, base = read_model(folder / "out.safetensors"), read_model(folder / "base.safetensors")
    assert report.tensor == (tensor or "layers.0.w")
    assert report.result == result[report.tensor].f64.reshape(-1)[report.element]
    assert report.base == base[report.tensor].f64.reshape(-1)[report.element]
    for row, path in zip(report.rows, packs, strict=True):
        with deltapack.open_pack(path) as pack:
            assert row.delta == pack[report.tensor].to_dense().reshape(-1)[report.element]
    assert min(row.delta for row in report.rows) < 0 < max(row.delta for row in report.rows)  # an element with a conflict


def test_weights_and_thresholds(family: tuple[Path, list[Path]]) -> None:
    folder, packs = family
    weights = (Schedule((Rule((0.25, 0.75)),)), constant(0.5))
    recipe = MergeRecipe("ties", weights, densities=(constant(0.1),))
    report = deltapack.explain_merge(folder / "base.safetensors", packs, "layers.1.w", recipe=recipe)
    assert [row.weight for row in report.rows] == [0.75, 0.5]
    (cuts,) = report.measured.values()
    with deltapack.open_pack(packs[0]) as pack:
        largest = np.sort(np.abs(pack["layers.1.w"].to_sparse()[1]))[::-1]
    assert largest[70] <= np.nextafter(np.float32(cuts[0]), np.float32(1)) and cuts[0] <= largest[69]


@pytest.mark.parametrize("name", ["same", "nobody"])
def test_tensors_that_are_not_merged(family: tuple[Path, list[Path]], name: str) -> None:
    folder, packs = family
    with pytest.raises(RecipeError, match="no such tensor") as error:
        deltapack.explain_merge(folder / "base.safetensors", packs, name)
    assert error.value.tensor == name


def test_the_command_prints_it(family: tuple[Path, list[Path]]) -> None:
    from click.testing import CliRunner

    from deltapack.cli.main import cli

    folder, packs = family
    call: list[Any] = ["merge", folder / "base.safetensors", *packs]
    explained = CliRunner().invoke(cli, [*map(str, call), "--explain", "auto", "--method", "sce"])
    assert explained.exit_code == 0
    assert "sum of delta^2 of each pack" in explained.stdout and "layers.0.w" in explained.stdout
    planned = CliRunner().invoke(cli, [*map(str, call), "-o", str(folder / "none"), "--dry-run", "--report"])
    assert planned.exit_code == 0
    assert "would merge" in planned.stdout and "layer 1" in planned.stdout and "cosine" in planned.stdout
    assert not (folder / "none").exists()
    missing = CliRunner().invoke(cli, [*map(str, call)])
    assert missing.exit_code == 2 and "--out" in missing.stderr


def test_a_tensor_that_its_only_pack_stores_whole(tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (64, 64))}
    tuned = tuned_model(base, 5)
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    deltapack.compress(*paths, tmp_path / "x.dpk", recipe=Recipe(exclude="w"))
    report = deltapack.explain_merge(paths[0], [tmp_path / "x.dpk"], "w")
    assert report.result == tuned["w"].f64.reshape(-1)[report.element] and report.added == report.result - report.base
