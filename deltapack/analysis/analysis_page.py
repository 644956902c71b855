"""The page of an analysis: what to do, and plots and tables that say why."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deltapack.analysis.charts import Axis, Series, bar_chart, heat_map, line_chart
from deltapack.analysis.findings import AnalysisReport, LayerFinding, TensorFinding
from deltapack.analysis.pages import fields, page, paragraphs, section, table

__all__ = ["analysis_page"]

_MOST_ROWS = 400
"""Tensors of the table; the rest is in the JSON."""
_FEW = 1e-3
"""Share of the elements, the smallest ones, that no bar is for."""
_PARTS = 24
"""Rows of the map: kinds of tensors that a layer has, the largest differences first."""


def analysis_page(report: AnalysisReport) -> str:
    """Return the page."""
    total = report.total
    head = fields(
        [
            ("base", str(report.base)),
            ("fine-tune", f"{report.finetuned}, {report.checkpoint_bytes / 1e6:,.1f} MB"),
            ("relative norm", f"{100 * total.relative:.3g} % of the base"),
            ("unchanged", f"{100 * total.unchanged:.3g} % of {total.elements:,} elements"),
            ("largest |delta|", f"{total.max_abs:.4g}"),
            ("kappa (estimate)", "" if total.kappa is None else f"{total.kappa:.2g}"),
        ]
    )
    return page(
        "What this fine-tune changed",
        [
            paragraphs([report.recommendation.replace("`", "")], "say"),
            head,
            paragraphs(report.warnings, "warn"),
            _budgets(report),
            _sizes(report),
            _layers(report),
            _spikes(report),
            _roles(report),
            _tensors(report),
            paragraphs(report.notes, "dim"),
        ],
    )


def _budgets(report: AnalysisReport) -> str:
    budgets = Series(
        "budgets (--target-bits)",
        [(row.bits, 100 * row.loss) for row in report.budgets],
        [f"{row.bits:g} bits: {row.bytes:,} bytes, {100 * row.loss:.3g} %" for row in report.budgets],
    )
    dare = Series(
        "DARE (--drop-rate)",
        [(row.bits, 100 * row.loss) for row in report.dare],
        [f"drop rate {row.drop_rate:g}: {100 * row.loss:.3g} %" for row in report.dare],
    )
    named = [(f"--target-bits {row.bits:g}", row) for row in report.budgets]
    if report.default is not None:
        named.insert(0, ("no option (--quality balanced)", report.default))
    rows = [[name, f"{row.bytes:,}", f"{row.ratio:,.0f}x", f"{row.noise:.3g}", f"{100 * row.retention:.1f} %"] for name, row in named]
    rows += [
        [f"--drop-rate {row.drop_rate:g} (values int3)", "", "", f"{row.noise:.3g}", f"{100 * (1 - row.loss):.1f} %"] for row in report.dare
    ]
    risk = [
        f"Weights with differences so large that DARE at 0.9 is risky: {row.risky}; that it fails: {row.failing}."
        for row in report.dare[:1]
    ]
    text = (
        "Estimates from the difference alone: retention is the share of what the fine-tune gained over the base, with a margin of three. "
        "deltapack evaluate measures it."
    )
    chart = line_chart("expected loss by bits", Axis("bits a weight", True), Axis("expected loss, %", True), [budgets, dare])
    header = ("pack", "bytes", "smaller", "noise", "expected retention")
    return section("How small can it be?", text, chart, table(header, rows), paragraphs(risk, "dim"))


def _sizes(report: AnalysisReport) -> str:
    counted = [(edge, count) for edge, count in report.histogram if edge > 0]
    few = _FEW * sum(count for _, count in counted)
    while counted and counted[0][1] < few:
        few -= counted.pop(0)[1]
    bars = [(f"{edge:.1e}", float(count)) for edge, count in counted]
    equal = f"{100 * report.total.unchanged:.3g} % are equal and not shown"
    text = f"Elements by |difference|, in classes of half an octave, without the smallest thousandth; {equal}."
    return section("How large are the differences?", text, bar_chart("histogram", Axis("|difference| from"), Axis("elements"), bars))


def _layers(report: AnalysisReport) -> str:
    inside = [row for row in report.layers if row.name.startswith("layer ")]
    bars = [(row.name.removeprefix("layer "), 100 * row.relative) for row in inside]
    chart = bar_chart("relative norm by layer", Axis("layer"), Axis("relative norm, %"), bars)
    header = ("", "tensors", "elements", "unchanged", "max |delta|", "relative norm", "energy", "spikes", "effective rank", "kappa")
    rows = [_layer_cells(row) for row in (*report.layers, report.total)]
    text = (
        "The norm of the difference over that of the base; in the map, which has a row for each kind of tensor, the darker, the larger. "
        "Energy is the share of the sum of squares; spikes are singular values above what noise would have; the effective rank says in how "
        "many directions the difference lies; kappa how much of the gain noise of its own size costs: means by energy, estimates."
    )
    return section("Where are they?", text, chart, _map(report.tensors), table(header, rows))


def _layer_cells(row: LayerFinding) -> list[str]:
    return [
        row.name,
        f"{row.tensors:,}",
        f"{row.elements:,}",
        f"{100 * row.unchanged:.1f} %",
        f"{row.max_abs:.3g}",
        f"{100 * row.relative:.3g} %",
        f"{100 * row.energy:.1f} %",
        f"{row.spikes:,}",
        "" if row.effective_rank is None else f"{row.effective_rank:.1f}",
        "" if row.kappa is None else f"{row.kappa:.2g}",
    ]


def _map(tensors: Sequence[TensorFinding]) -> str:
    """Return relative norms by kind of tensor and layer."""
    inside = [tensor for tensor in tensors if tensor.layer is not None and tensor.elements]
    parts: dict[str, dict[int, float]] = {}
    energy: dict[str, float] = {}
    for tensor in inside:
        part = re.sub(r"^.*?(?<![^./])(?:layers?|h|blocks?)\.\d+\.", "", tensor.name)
        parts.setdefault(part, {})[tensor.layer or 0] = 100 * tensor.relative
        energy[part] = energy.get(part, 0.0) + tensor.energy
    chosen = sorted(sorted(parts, key=lambda part: (-energy[part], part))[:_PARTS])
    layers = sorted({layer for part in chosen for layer in parts[part]})
    values = [[parts[part].get(layer) for layer in layers] for part in chosen]
    return heat_map("relative norm by kind and layer", chosen, [str(layer) for layer in layers], values, "% of the base")


def _spikes(report: AnalysisReport) -> str:
    weights = [tensor for tensor in report.tensors if tensor.singular and tensor.bulk > 0]
    largest = sorted(weights, key=lambda tensor: (-tensor.energy, tensor.name))[:5]
    series = [
        Series(
            tensor.name,
            [(number + 1, value / tensor.bulk) for number, value in enumerate(tensor.singular)],
            [f"{tensor.name}: singular value {number + 1} is {value:.4g}" for number, value in enumerate(tensor.singular)],
        )
        for tensor in largest
    ]
    text = (
        "The largest singular values of the five weights with most of the difference, over the largest that noise of the rest's size would "
        "have. Those above 1 are spikes: low-rank terms hold them in few bytes."
    )
    chart = line_chart("spikes", Axis("number of the singular value"), Axis("over the bulk", True), series)
    return section("Is it noise, or few directions?", text, chart)


def _roles(report: AnalysisReport) -> str:
    header = ("role", "tensors", "elements", "bytes", "energy", "what becomes of it")
    rows = [
        [row.role, f"{row.tensors:,}", f"{row.elements:,}", f"{row.bytes:,}", f"{100 * row.energy:.1f} %", row.text] for row in report.roles
    ]
    return section("What becomes of which tensors?", "By role, which name, shape and neighbours tell.", table(header, rows, last=True))


def _tensors(report: AnalysisReport) -> str:
    header = (
        *("tensor", "role", "shape", "unchanged", "median |delta|", "99 % below", "max |delta|", "relative norm", "energy", "spikes"),
        *("effective rank", "kappa", "DARE at 0.9"),
    )
    shown = sorted(report.tensors, key=lambda tensor: (-tensor.energy, tensor.name))
    rows = [_tensor_cells(tensor) for tensor in shown[:_MOST_ROWS]]
    more = len(shown) - _MOST_ROWS
    text = "The largest differences first." + (f" {more:,} more are in the output of --json." if more > 0 else "")
    return section("Tensor by tensor", text, table(header, rows))


def _tensor_cells(tensor: TensorFinding) -> list[str]:
    start = [tensor.name, tensor.role, " x ".join(map(str, tensor.shape))]
    if not tensor.elements:
        return [*start, *[""] * 10]
    return [
        *start,
        f"{100 * tensor.unchanged:.1f} %",
        f"{tensor.median_abs:.2g}",
        f"{tensor.p99_abs:.2g}",
        f"{tensor.max_abs:.3g}",
        f"{100 * tensor.relative:.3g} %",
        f"{100 * tensor.energy:.2g} %",
        tensor.spikes_told,
        "" if tensor.effective_rank is None else f"{tensor.effective_rank:.1f}",
        "" if tensor.kappa is None else f"{tensor.kappa:.2g}",
        tensor.dare or "fine",
    ]
