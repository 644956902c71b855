"""Use case: a difference looked at before it is packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltapack.analysis.advising import dare_risk, recommend
from deltapack.analysis.analysis_page import analysis_page
from deltapack.analysis.findings import AnalysisReport, LayerFinding, RoleRow, TensorFinding
from deltapack.analysis.pages import check_page, write_page
from deltapack.analysis.passing import Looked, look_at
from deltapack.analysis.predicting import budget_rows, dare_rows
from deltapack.analysis.spikes import bulk_edge, effective_rank, spike_count
from deltapack.analysis.statistics import DeltaStats, class_edges, combined
from deltapack.checking import as_checkpoint, as_path, as_paths
from deltapack.merging.recipe import layer_number
from deltapack.packing.budget import Budget
from deltapack.packing.inputs import Asked, Inputs, open_inputs
from deltapack.packing.kinship import shortened
from deltapack.packing.knowing import Surveyed
from deltapack.packing.recipe import Recipe
from deltapack.packing.roles import ROLES
from deltapack.parallel import resolve_workers
from deltapack.reports import Progress
from deltapack.sources.inputs import guarded, note_named

__all__ = ["analyze"]

_RECIPE = Recipe(budget=Budget(quality="balanced"), non_finite="store")
"""Nothing is packed by it: it says which tensors a budget is for."""


@guarded
def analyze(
    base: str | Path,
    finetuned: str | Path,
    *,
    html: str | Path | None = None,
    force: bool = False,
    name_map: Sequence[tuple[str, str]] = (),
    allow_unrelated: bool = False,
    weight_files: str | None = None,
    base_packs: Sequence[str | Path] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> AnalysisReport:
    """Look at what a fine-tune changed, and at what a pack of it would cost and keep; no model runs.

    Reads both checkpoints three to four times, in pieces: once for the sizes of differences, then for the singular directions of weights.
    Memory does not grow with the model, but for a few directions of each weight.

    Args:
        base: As for `deltapack.compress`.
        finetuned: Likewise.
        html: A page with tables and plots to write, one file that needs nothing else.
        force: Whether to replace an existing page.
        name_map: As for `deltapack.compress`, as are the next three.
        allow_unrelated: Whether to go on where most of the fine-tune has nothing to do with the base.
        weight_files: Which weights count where a folder has one file and an index of shards that differ.
        base_packs: Packs of a chain that gives the base.
        workers: Threads; every core unless given.
        progress: Called with bytes read so far and in all.

    Returns:
        What was found, by tensor and by layer, what packs are expected to be, and a recommendation. What is expected is an estimate:
        `deltapack.evaluate` measures.

    Raises:
        BaseMismatchError: As `deltapack.compress`.
        CheckpointError: An input is damaged or not a checkpoint.
        FormatError: One of `base_packs` is damaged.
        OutputError: `html` exists or cannot be written.
        RecipeError: An argument is out of range or of another type.
        UnsupportedError: As `deltapack.compress`.
    """
    asked = Asked(_RECIPE, name_map, False, None, allow_unrelated, weight_files, None, (), base_packs)
    count, out = resolve_workers(workers), None if html is None else as_path("html", html)
    base, finetuned = as_checkpoint("base", base), as_checkpoint("finetuned", finetuned)
    note_named(base, finetuned, *as_paths("base_packs", asked.base_packs))
    if out is not None:
        check_page(out, force=force)
    with open_inputs(base, finetuned, asked) as inputs:
        report = _report(inputs, look_at(inputs, count, progress or (lambda done, total: None)), count)
    if out is not None:
        write_page(analysis_page(report), out, force=force)
    return report


def _report(inputs: Inputs, looked: Looked, workers: int) -> AnalysisReport:
    everything = combined(list(looked.stats.values()))
    tensors = [_tensor(inputs, name, looked, everything.squares) for name in sorted(inputs.finetuned.tensors, key=str.encode)]
    total = _layer("all", tensors, looked, everything.squares)
    budgets, default = budget_rows(inputs, looked, workers)
    edges = class_edges()
    histogram = [(float(edges[number]), int(count)) for number, count in enumerate(everything.counts) if count and number]
    return AnalysisReport(
        inputs.base.path,
        inputs.finetuned.path,
        sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values()),
        tensors,
        _layers(tensors, looked, everything.squares),
        total,
        _roles(inputs, tensors),
        [(0.0, everything.unchanged), *histogram],
        budgets,
        default,
        dare_rows(tensors, looked),
        recommend(total, budgets),
        [*inputs.survey.warnings, *_warnings(looked, tensors)],
        inputs.notes(),
    )


def _tensor(inputs: Inputs, name: str, looked: Looked, energy: float) -> TensorFinding:
    """Return what is known of one tensor."""
    tensor, role, layer = inputs.finetuned.tensors[name], inputs.survey.settled[name], layer_number(name)
    stats, surveyed = looked.stats.get(name), looked.weights.get(name)
    if stats is None:
        return TensorFinding(name, role, layer, tensor.dtype.name, tensor.shape, 0)
    sizes = (stats.max_abs, stats.mean_abs, stats.quantile(0.5), stats.quantile(0.99), stats.relative)
    share = stats.squares / energy if energy > 0 else 0.0
    found = TensorFinding(name, role, layer, tensor.dtype.name, tensor.shape, stats.elements, _unchanged(stats), *sizes, share)
    return found if surveyed is None or not stats.squares else _with_directions(found, surveyed)


def _with_directions(found: TensorFinding, surveyed: Surveyed) -> TensorFinding:
    known, spectrum = surveyed.known, surveyed.spectrum
    singular = () if spectrum is None else tuple(map(float, spectrum.values))
    edge = bulk_edge(singular, known.energy, known.rows, known.columns) if singular else 0.0
    rank = effective_rank(singular, known.energy, known.rows, known.columns) if singular else None
    return replace(
        found,
        singular=singular,
        bulk=edge,
        spikes=spike_count(singular, edge),
        effective_rank=rank,
        kappa=None if spectrum is None else spectrum.kappa,
        moved_rows=known.moved if known.kind == "touched" else None,
        dare=dare_risk(found.max_abs),
    )


def _unchanged(stats: DeltaStats) -> float:
    return stats.unchanged / stats.elements if stats.elements else 1.0


def _layers(tensors: Sequence[TensorFinding], looked: Looked, energy: float) -> list[LayerFinding]:
    """Return a row for each layer, in order, and one for what is outside of them."""
    by_layer: dict[int | None, list[TensorFinding]] = {}
    for tensor in tensors:
        by_layer.setdefault(tensor.layer, []).append(tensor)
    outside = by_layer.pop(None, [])
    rows = [
        _layer(f"layer {number}", own, looked, energy) for number, own in sorted((n, own) for n, own in by_layer.items() if n is not None)
    ]
    return rows + ([_layer("outside of the layers", outside, looked, energy)] if outside else [])


def _layer(name: str, tensors: Sequence[TensorFinding], looked: Looked, energy: float) -> LayerFinding:
    stats = combined([looked.stats[tensor.name] for tensor in tensors if tensor.name in looked.stats])
    return LayerFinding(
        name,
        len(tensors),
        stats.elements,
        _unchanged(stats),
        stats.max_abs,
        stats.relative,
        stats.squares / energy if energy > 0 else 0.0,
        sum(tensor.spikes for tensor in tensors),
        _mean([(tensor.energy, tensor.effective_rank) for tensor in tensors]),
        _mean([(tensor.energy, tensor.kappa) for tensor in tensors]),
    )


def _mean(values: Sequence[tuple[float, float | None]]) -> float | None:
    """Return the mean of those that are there, by weights."""
    there = [(weight, value) for weight, value in values if value is not None]
    total = sum(weight for weight, _ in there)
    return sum(weight * value for weight, value in there) / total if total > 0 else None


def _roles(inputs: Inputs, tensors: Sequence[TensorFinding]) -> list[RoleRow]:
    rows = []
    for role in ROLES.values():
        own = [tensor for tensor in tensors if tensor.role == role.name]
        infos = [inputs.finetuned.tensors[tensor.name] for tensor in own]
        if own:
            sizes = sum(info.numel for info in infos), sum(info.nbytes for info in infos)
            rows.append(RoleRow(role.name, role.text, len(own), *sizes, sum(tensor.energy for tensor in own)))
    return rows


def _warnings(looked: Looked, tensors: Sequence[TensorFinding]) -> list[str]:
    odd = [name for name, stats in looked.stats.items() if stats.odd]
    said = [f"{shortened(odd)}: differences that are NaN or infinite, which nothing here counts."] if odd else []
    failing = [tensor.name for tensor in tensors if tensor.dare == "fails"]
    if failing:
        said.append(f"{shortened(failing)}: differences so large that DARE fails on them; a budget does without it.")
    return said
