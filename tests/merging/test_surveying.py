"""How packs relate: counts against dense arrays, corrected cosines and norms against the differences before dropping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builders import CHUNK, Tensor, random_tensor, write_file
from support.fixtures import as_weights

import deltapack
from deltapack import Recipe
from deltapack.merging.recipe import MergeRecipe, constant
from deltapack.reports import LayerRow

SHAPES = {"model.layers.0.w": (400, 500), "model.layers.10.w": (300, 300), "model.layers.2.w": (CHUNK + 9,), "head": (4, 100)}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], dict[str, list[np.ndarray]]]:
    """Packs of three fine-tunes whose differences have a cosine of 1/2, and the differences before dropping."""
    folder = tmp_path_factory.mktemp("survey")
    base = {name: random_tensor(number, shape) for number, (name, shape) in enumerate(SHAPES.items())}
    write_file(folder / "base.safetensors", base)
    rng = np.random.default_rng(0)
    common = {name: rng.normal(0, 0.01, shape) for name, shape in SHAPES.items()}
    packs: list[Path] = []
    dense: dict[str, list[np.ndarray]] = {name: [] for name in SHAPES}
    for number, recipe in enumerate(
        (Recipe(drop_rate=0.5, values="f32"), Recipe(drop_rate=0.8, values="f32", index="gaps"), Recipe(drop_rate=0))
    ):
        tuned = {}
        for name, tensor in base.items():
            tuned[name] = Tensor("f32", (tensor.bits + common[name] + rng.normal(0, 0.01, tensor.shape)).astype("<f4"))
            dense[name].append(tuned[name].f64 - tensor.f64)
        write_file(folder / "tuned.safetensors", tuned)
        packs.append(folder / f"{number}.dpk")
        made = replace(recipe, overrides=as_weights(base))
        deltapack.compress(folder / "base.safetensors", folder / "tuned.safetensors", packs[-1], recipe=made)
    return folder, packs, dense


def kept(packs: list[Path], name: str) -> np.ndarray:
    rows = []
    for path in packs:
        with deltapack.open_pack(path) as pack:
            rows.append(pack[name].to_dense().reshape(-1).astype(np.float64))
    return np.stack(rows)


def test_rows_are_what_dense_arrays_say(family: tuple[Path, list[Path], dict[str, list[np.ndarray]]]) -> None:
    folder, packs, _ = family
    weights = (1.0, 0.5, 0.25)
    recipe = MergeRecipe(weights=tuple(map(constant, weights)))
    report = deltapack.survey_merge(folder / "base.safetensors", packs, recipe=recipe)
    rows = {row.name: row for row in report.layers}
    assert list(rows) == ["layer 0", "layer 2", "layer 10", "outside of the layers"]
    for name, row in (("model.layers.0.w", rows["layer 0"]), ("model.layers.2.w", rows["layer 2"])):
        deltas = kept(packs, name)
        several = (deltas != 0).sum(axis=0) > 1
        both = (deltas > 0).any(axis=0) & (deltas < 0).any(axis=0)
        changed = int(np.count_nonzero(deltas.any(axis=0)))
        assert (row.elements, row.changed) == (deltas.shape[1], changed)
        assert (row.overlap, row.conflicts) == (several.sum() / changed, both.sum() / several.sum())
        energy = (deltas**2).sum(axis=1) * np.square(weights)
        assert row.shares == pytest.approx(energy / energy.sum())
    total = report.total
    assert total.elements == sum(row.elements for row in report.layers)
    assert total.changed == sum(row.changed for row in report.layers)
    assert not report.warnings


def test_norms_and_cosines_are_those_before_dropping(family: tuple[Path, list[Path], dict[str, list[np.ndarray]]]) -> None:
    """Estimates from what was kept: within a few of their standard deviations, which are below 1 % of the norms here."""
    folder, packs, dense = family
    row: LayerRow = deltapack.survey_merge(folder / "base.safetensors", packs).layers[1]
    norms = [np.linalg.norm(delta) for delta in dense["model.layers.2.w"]]
    assert row.norms == pytest.approx(norms, rel=0.02)
    assert row.cosine == pytest.approx(0.5, abs=0.02)


def test_masks_that_coincide(family: tuple[Path, list[Path], dict[str, list[np.ndarray]]]) -> None:
    folder, packs, _ = family
    report = deltapack.survey_merge(folder / "base.safetensors", [packs[1], packs[1]])
    assert report.total.overlap == 1 and report.total.cosine == 1 and report.total.conflicts == 0
    assert any("masks coincide" in warning for warning in report.warnings)
    merged = deltapack.merge(folder / "base.safetensors", [packs[1], packs[1]], folder / "out.safetensors", report=True, force=True)
    assert merged.survey == report
    assert set(report.warnings) <= set(merged.warnings)


def test_workers_do_not_matter(family: tuple[Path, list[Path], dict[str, list[np.ndarray]]]) -> None:
    folder, packs, _ = family
    recipe = MergeRecipe("ties", densities=(constant(0.1),))
    reports = [deltapack.survey_merge(folder / "base.safetensors", packs, recipe=recipe, workers=workers) for workers in (1, 3)]
    assert reports[0] == reports[1]
    assert reports[0].total.changed < 0.35 * reports[0].total.elements
