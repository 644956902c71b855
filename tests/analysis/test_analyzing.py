"""What a difference is said to be, against numpy on whole matrices; and what packs then are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.builders import CHUNK, Model, Tensor, cast, edited, random_tensor, read_model, whole, write_file

import deltapack
from deltapack.analysis import predicting
from deltapack.analysis.advising import recommend
from deltapack.analysis.findings import BudgetRow, LayerFinding
from deltapack.analysis.passing import look_at
from deltapack.analysis.spikes import bulk_edge, effective_rank, spike_count
from deltapack.analysis.statistics import CLASSES, class_edges, combined, stats_of
from deltapack.errors import BaseMismatchError, OutputError, RecipeError
from deltapack.packing.budget import Budget
from deltapack.packing.fitting import fit
from deltapack.packing.inputs import Asked, open_inputs
from deltapack.packing.passes import Passes

Matrix = NDArray[np.float64]
ROWS, COLUMNS = 96, 160


def difference(seed: int, rows: int = ROWS, columns: int = COLUMNS, spikes: int = 2, size: float = 1e-3) -> Matrix:
    """Noise, and a few directions that stand out."""
    random = np.random.default_rng(seed)
    found = random.normal(0, size, (rows, columns))
    for number in range(spikes):
        found += np.outer(random.normal(0, 1, rows), random.normal(0, 1, columns)) * size * (1.5 - 0.5 * number)
    return found


def models(dtype: str = "f32") -> tuple[Model, Model]:
    """Three layers, one of which is untouched, an embedding of which most rows stay, a norm, a count, a new head."""
    base: Model = {"model.embed_tokens.weight": random_tensor(1, (4096, 32), dtype), "model.norm.weight": random_tensor(2, (300,), dtype)}
    base |= {f"model.layers.{layer}.mlp.up_proj.weight": random_tensor(10 + layer, (ROWS, COLUMNS), dtype) for layer in range(3)}
    base |= {"count": whole("i64", [3]), "model.layers.0.bn.running_mean": random_tensor(3, (40,), dtype)}
    tuned = dict(base)
    for layer in (0, 2):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        tuned[name] = cast(base[name].f64 + difference(20 + layer), dtype)
    moved = np.zeros((4096, 32))
    moved[::40] = np.random.default_rng(5).normal(0, 2e-3, moved[::40].shape)
    tuned["model.embed_tokens.weight"] = cast(base["model.embed_tokens.weight"].f64 + moved, dtype)
    tuned["model.norm.weight"] = cast(base["model.norm.weight"].f64 + difference(7, 1, 300, 0, 0.01)[0], dtype)
    tuned["head.weight"] = random_tensor(9, (20, 30), dtype)
    return base, tuned


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("analysed")
    base, tuned = models()
    return write_file(folder / "base.safetensors", base), write_file(folder / "tuned.safetensors", tuned)


@pytest.fixture(scope="module")
def report(written: tuple[Path, Path]) -> deltapack.AnalysisReport:
    return deltapack.analyze(*written)


def test_elements_are_counted_as_numpy_counts_them(report: deltapack.AnalysisReport) -> None:
    base, tuned = models()
    deltas = {name: tuned[name].f64 - base[name].f64 for name in base if name != "count"}
    energy = sum(float((delta * delta).sum()) for delta in deltas.values())
    found = {tensor.name: tensor for tensor in report.tensors}
    assert sorted(found) == sorted(tuned) and found["count"].elements == found["head.weight"].elements == 0
    for name, delta in deltas.items():
        own, size = found[name], np.abs(delta.astype(np.float32).astype(np.float64))
        assert own.elements == delta.size and own.unchanged == np.mean(delta == 0)
        assert own.max_abs == pytest.approx(size.max(), rel=1e-5) and own.mean_abs == pytest.approx(size.mean(), rel=1e-5)
        assert own.relative == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(base[name].f64), rel=1e-5)
        assert own.energy == pytest.approx((delta * delta).sum() / energy, rel=1e-5)
        for share, value in ((0.5, own.median_abs), (0.99, own.p99_abs)):
            assert value <= own.max_abs and (np.mean(size <= value) == pytest.approx(share, abs=0.12) or own.unchanged > 0.4)
    assert report.total.elements == sum(delta.size for delta in deltas.values()) == sum(count for _, count in report.histogram)
    assert report.histogram[0] == (0.0, sum(int((delta == 0).sum()) for delta in deltas.values()))
    assert report.total.energy == pytest.approx(1) and report.total.tensors == len(tuned)
    said = json.loads(json.dumps(report.to_json()))
    assert [row["retention"] for row in said["budgets"]] == [1 - row.loss for row in report.budgets] and len(said["budgets"]) > 2


def test_directions_are_those_of_a_whole_decomposition(report: deltapack.AnalysisReport) -> None:
    base, tuned = models()
    for layer in (0, 2):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        own = next(tensor for tensor in report.tensors if tensor.name == name)
        values = np.linalg.svd(tuned[name].f64 - base[name].f64, compute_uv=False)
        assert own.singular[:2] == pytest.approx(values[:2], rel=1e-3)
        assert own.effective_rank == pytest.approx(values.dot(values) ** 2 / (values**4).sum(), rel=0.05)
        assert own.kappa == pytest.approx(values.dot(values) ** 3 / (ROWS * COLUMNS * (values**6).sum()), rel=0.05)
        assert own.spikes == 2 and own.spikes_told == "2"
        assert own.bulk == pytest.approx(1e-3 * (ROWS**0.5 + COLUMNS**0.5), rel=0.05) and values[2] < 1.05 * own.bulk < values[1]
    still = next(tensor for tensor in report.tensors if "layers.1" in tensor.name)
    assert (still.singular, still.kappa, still.unchanged, still.spikes_told) == ((), None, 1.0, "")
    embedding = next(tensor for tensor in report.tensors if "embed" in tensor.name)
    assert embedding.moved_rows == len(range(0, 4096, 40))


def test_layers_and_roles(report: deltapack.AnalysisReport) -> None:
    assert [row.name for row in report.layers] == ["layer 0", "layer 1", "layer 2", "outside of the layers"]
    assert [row.tensors for row in report.layers] == [2, 1, 1, 4] and [row.spikes for row in report.layers][:3] == [2, 0, 2]
    assert sum(row.energy for row in report.layers) == pytest.approx(1) and report.layers[1].unchanged == 1
    roles = {row.role: row for row in report.roles}
    assert list(roles) == ["weight", "vector", "statistic", "integer"]
    assert roles["weight"].tensors == 5 and roles["vector"].energy > 0 and roles["integer"].bytes == 8


@pytest.mark.parametrize("workers", [1, 3])
def test_the_report_depends_on_no_worker(written: tuple[Path, Path], report: deltapack.AnalysisReport, workers: int) -> None:
    seen = list[tuple[int, int]]()
    assert deltapack.analyze(*written, workers=workers, progress=lambda done, total: seen.append((done, total))) == report
    assert seen == sorted(seen) and len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1] > 0


def test_tensors_of_several_chunks_and_types(tmp_path: Path) -> None:
    """Elements beyond a chunk, another type than the base's, rows that the base has not."""
    base = {
        "long": random_tensor(1, (CHUNK + 70_000,), "bf16"),
        "grown": random_tensor(2, (300, 20), "f16"),
        "type": random_tensor(3, (30, 40)),
    }
    tuned = dict(base)
    tuned["long"] = edited(base["long"], CHUNK + 5, 0x3F80)
    tuned["grown"] = Tensor("f16", np.concatenate([base["grown"].bits, base["grown"].bits[:7]]))
    tuned["type"] = cast(base["type"].f64, "bf16")
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    found = {tensor.name: tensor for tensor in deltapack.analyze(*paths).tensors}
    delta = 1.0 - base["long"].f64[CHUNK + 5]
    assert found["long"].unchanged == 1 - 1 / (CHUNK + 70_000) and found["long"].max_abs == pytest.approx(abs(delta), rel=1e-6)
    assert (found["grown"].elements, found["grown"].unchanged) == (6000, 1.0)
    rounding = np.abs(tuned["type"].f64 - base["type"].f64)
    assert found["type"].max_abs == pytest.approx(rounding.max(), rel=1e-6) and found["type"].unchanged == np.mean(rounding == 0)


def test_what_is_not_finite_is_told_and_left_out(tmp_path: Path) -> None:
    base = {"w": random_tensor(1, (40, 60)), "v": random_tensor(2, (40, 60))}
    tuned = {name: cast(tensor.f64 + difference(3, 40, 60), "f32") for name, tensor in base.items()}
    tuned["w"] = edited(tuned["w"], 7, np.nan)
    base["v"], tuned["v"] = edited(base["v"], 9, np.inf), edited(tuned["v"], 9, np.inf)
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    report = deltapack.analyze(*paths)
    found = {tensor.name: tensor for tensor in report.tensors}
    assert any("w: differences that are NaN or infinite" in warning for warning in report.warnings)
    assert found["w"].elements == 2399 and np.isfinite(found["w"].relative) and found["w"].singular == ()
    assert found["v"].elements == 2400 and found["v"].unchanged == 1 / 2400
    assert np.isfinite([found["v"].relative, found["v"].energy]).all()


def test_packs_are_what_is_expected(tmp_path: Path) -> None:
    """The size of the file, and the noise of what it restores."""
    base: Model = {f"model.layers.{layer}.w": random_tensor(layer, (320, 448)) for layer in range(8)}
    tuned = {name: cast(tensor.f64 + difference(number, 320, 448), "f32") for number, (name, tensor) in enumerate(base.items())}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    report = deltapack.analyze(*paths)
    assert [row.bits for row in report.budgets] == sorted((row.bits for row in report.budgets), reverse=True)
    assert [row.loss for row in report.budgets] == sorted(row.loss for row in report.budgets)
    assert report.default is not None
    recipes = [(row, deltapack.Recipe(budget=Budget(bits=row.bits))) for row in report.budgets if row.bits in (1.0, 0.25)]
    for row, recipe in [*recipes, (report.default, deltapack.Recipe())]:
        out = tmp_path / f"{row.bits}.dpk"
        deltapack.compress(*paths, out, recipe=recipe)
        aimed = recipe.budget is not None  # the default takes 0.05 bits here, where the index is a large part of 9 kB and few trits left
        assert out.stat().st_size == pytest.approx(row.bytes, rel=0.03 if aimed else 0.15)
        deltapack.apply(paths[0], out, tmp_path / "out.safetensors", force=True)
        restored = read_model(tmp_path / "out.safetensors")
        error = sum(float(np.square(restored[name].f64 - tuned[name].f64).sum()) for name in base)
        power = sum(float(np.square(base[name].f64 - tuned[name].f64).sum()) for name in base)
        assert error / power == pytest.approx(row.noise, rel=0.3 if aimed else 0.5)


def test_a_page_is_written(written: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    report = deltapack.analyze(*written, html=page)
    text = page.read_text()
    assert report.recommendation.replace("`", "").split(":")[0] in text and text.count("<svg") >= 4 and "embed_tokens" in text
    with pytest.raises(OutputError, match="exists"):
        deltapack.analyze(*written, html=page)
    deltapack.analyze(*written, html=page, force=True)


def test_what_is_refused(written: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_file(tmp_path / "other.safetensors", {"x": random_tensor(1, (90, 90))})
    with pytest.raises(BaseMismatchError):
        deltapack.analyze(written[0], other)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"workers": 0}, "workers"),
        ({"html": 7}, "html is not a path"),
        ({"name_map": "x"}, "name_map"),
    ]
    for arguments, words in wrong:
        with pytest.raises(RecipeError, match=words):
            deltapack.analyze(*written, **arguments)


def test_no_budget_is_shown_that_its_pack_would_not_fit(written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = tuple(2.0 * 0.8**step for step in range(40))
    monkeypatch.setattr(predicting, "BITS", ladder)
    report = deltapack.analyze(*written)
    assert tuple(row.bits for row in report.budgets) == ladder[: len(report.budgets)] and 2 < len(report.budgets) < 40
    floats = sum(tensor.elements for tensor in report.tensors)
    assert all(row.bytes <= 1.06 * row.bits * floats / 8 for row in report.budgets)


def test_equal_checkpoints(written: tuple[Path, Path], tmp_path: Path) -> None:
    report = deltapack.analyze(written[0], written[0], html=tmp_path / "page.html")
    assert report.total.unchanged == 1 and report.budgets == [] and report.default is None and "no difference" in report.recommendation


TOTAL = LayerFinding("all", 9, 10_000, 0.1, 0.001, 0.01, 1.0, 3, 20.0, 1e-3)
GRID = [BudgetRow(bits, int(1e8 * bits), 16 / bits, 1 / bits, 0.003 / bits) for bits in (1.0, 0.25, 0.1)]


@pytest.mark.parametrize(
    ("total", "budgets", "words"),
    [
        (
            TOTAL,
            GRID,
            "Use `deltapack compress --target-bits 0.25` (about 25 MB), 64 times smaller than the fine-tune, with an",
        ),
        (
            TOTAL,
            [replace(row, loss=row.loss * 4) for row in GRID],
            "says that `deltapack compress --target-bits 0.25` (about 25 MB) loses 4.8 %",
        ),
        (
            TOTAL,
            [replace(row, loss=0.5) for row in GRID],
            "looks like noise: even `deltapack compress --target-bits 1` (about 100 MB) would lose",
        ),
        (TOTAL, [replace(row, bytes=row.bytes // 1000) for row in GRID], "(about 25 kB)"),
        (TOTAL, [], "Too little of the difference"),
        (replace(TOTAL, unchanged=0.995), GRID, "Only 0.5 % of the elements changed"),
        (replace(TOTAL, energy=0.0), GRID, "no difference that a pack could drop from (are the paths right?)"),
    ],
)
def test_the_recommendation_is_one_sentence(total: LayerFinding, budgets: list[BudgetRow], words: str) -> None:
    said = recommend(total, budgets)
    assert words in said and said.endswith(".") and said.count(". ") == 0


def test_noise_has_no_spikes() -> None:
    for seed, (rows, columns) in enumerate(((100, 100), (40, 400), (900, 60))):
        values = np.linalg.svd(difference(seed, rows, columns, spikes=0), compute_uv=False)
        top, energy = tuple(map(float, values[:8])), float((values**2).sum())
        edge = bulk_edge(top, energy, rows, columns)
        assert edge == pytest.approx(values[0], rel=0.08) and spike_count(top, edge) == 0
        assert effective_rank(top, energy, rows, columns) == pytest.approx(energy**2 / (values**4).sum(), rel=0.15)
    assert effective_rank((), 0.0, 3, 3) == 0.0


def test_statistics_add_up() -> None:
    random = np.random.default_rng(0)
    delta, base = random.normal(0, 1e-3, 5000).astype(np.float32), random.normal(0, 1, 5000).astype(np.float32)
    delta[:100] = 0
    parts = combined([stats_of(delta[:999].copy(), base[:999]), stats_of(delta[999:].copy(), base[999:])])
    one = stats_of(delta.copy(), base)
    assert (
        (parts.elements, parts.unchanged, parts.max_abs) == (one.elements, one.unchanged, one.max_abs) == (5000, 100, np.abs(delta).max())
    )
    assert np.array_equal(parts.counts, one.counts) and parts.squares == pytest.approx(one.squares)
    assert one.quantile(0.0) == 0.0 and one.quantile(1.0) == one.max_abs
    assert one.quantile(0.5) == pytest.approx(np.quantile(np.abs(delta), 0.5), rel=0.05)
    edges = class_edges()
    assert len(edges) == CLASSES + 1 and edges[0] == 0 and (np.diff(edges[:510]) > 0).all() and edges[254:257].tolist() == [1.0, 1.5, 2.0]
    assert combined([]).relative == 0.0 and combined([]).mean_abs == 0.0


def test_an_analysis_knows_of_weights_what_a_pack_does(tmp_path: Path) -> None:
    """Heads of small vocabularies among them, which get more bits than the body."""
    names = {"model.layers.0.mlp.up_proj.weight": 1, "lm_head.weight": 2}
    base = {name: random_tensor(seed, (ROWS, COLUMNS), "f32") for name, seed in names.items()}
    tuned = {name: cast(base[name].f64 + difference(seed), "f32") for name, seed in names.items()}
    paths = write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)
    budget = Budget(bits=0.5)
    with open_inputs(*paths, Asked(deltapack.Recipe(budget=budget))) as inputs:
        looked, fitting = look_at(inputs, 2, lambda done, total: None), fit(inputs, budget, 2, Passes(lambda done, total: None))
    assert {name: one.known for name, one in looked.weights.items()} == {name: one.known for name, one in fitting.weights.items()}
    assert {name: one.known.boost for name, one in looked.weights.items()} == {"model.layers.0.mlp.up_proj.weight": 1, "lm_head.weight": 4}
