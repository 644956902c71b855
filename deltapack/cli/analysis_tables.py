"""What `analyze`, `evaluate` and `tune` print, as cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltapack.cli.render import count_of, human_bytes

if TYPE_CHECKING:
    from deltapack.analysis.findings import AnalysisReport, LayerFinding, TensorFinding
    from deltapack.analysis.reports import EvaluateReport, EvaluateRow, TunedPack, TuneReport

__all__ = [
    "analysis_fields",
    "budget_table",
    "evaluate_rows",
    "layer_table",
    "role_table",
    "tensor_table",
    "tuned_fields",
    "tuned_rows",
]

Table = tuple[Sequence[str], list[Sequence[str]]]


def analysis_fields(report: AnalysisReport) -> list[tuple[str, str]]:
    """Return what an analysis found of all tensors together, in two columns."""
    total = report.total
    return [
        ("fine-tune", f"{report.finetuned}, {human_bytes(report.checkpoint_bytes)}"),
        ("compared", f"{count_of(total.elements, 'element')}, {_percent(total.unchanged)} of them equal"),
        ("difference", f"{100 * total.relative:.3g} % of the base's norm, at most {total.max_abs:.4g}"),
        ("kappa", "" if total.kappa is None else f"{total.kappa:.2g}, an estimate of how much noise of its size costs"),
    ]


def role_table(report: AnalysisReport) -> Table:
    """Return header and rows of what becomes of which tensors."""
    header = ("role", "what becomes of it", "tensors", "bytes", "energy")
    told = [row.text.rpartition(": ")[2] for row in report.roles]  # which tensors these are is too long for a terminal
    rows = zip(report.roles, told, strict=True)
    return header, [[row.role, text, f"{row.tensors:,}", f"{row.bytes:,}", _percent(row.energy)] for row, text in rows]


def layer_table(report: AnalysisReport) -> Table:
    """Return header and rows of the layers."""
    header = ("layer", "elements", "equal", "max |delta|", "norm", "energy", "spikes", "rank", "kappa")
    return header, [_finding(row.name, row, str(row.spikes)) for row in (*report.layers, report.total)]


def tensor_table(report: AnalysisReport) -> Table:
    """Return header and rows of the tensors, those with the largest differences first."""
    header = ("tensor", "elements", "equal", "max |delta|", "norm", "energy", "spikes", "rank", "kappa", "DARE at 0.9")
    ordered = sorted(report.tensors, key=lambda tensor: (-tensor.energy, tensor.name))
    return header, [[*_finding(tensor.name, tensor, tensor.spikes_told), tensor.dare] for tensor in ordered]


def _finding(name: str, row: LayerFinding | TensorFinding, spikes: str) -> list[str]:
    return [
        name,
        f"{row.elements:,}",
        _percent(row.unchanged),
        f"{row.max_abs:.3g}",
        f"{100 * row.relative:.3g} %",
        _percent(row.energy),
        spikes,
        "" if row.effective_rank is None else f"{row.effective_rank:.1f}",
        "" if row.kappa is None else f"{row.kappa:.2g}",
    ]


def budget_table(report: AnalysisReport) -> Table:
    """Return header and rows of what packs are expected to be."""
    header = ("pack", "size", "smaller", "noise", "expected retention")
    named = [(f"--target-bits {row.bits:g}", row) for row in report.budgets]
    if report.default is not None:
        named.insert(0, ("no option", report.default))
    rows: list[Sequence[str]] = [
        [name, human_bytes(row.bytes), f"{row.ratio:,.0f}x", f"{row.noise:.3g}", _percent(row.retention)] for name, row in named
    ]
    return header, rows + [[f"--drop-rate {row.drop_rate:g}", "", "", f"{row.noise:.3g}", _percent(1 - row.loss)] for row in report.dare]


def evaluate_rows(report: EvaluateReport) -> Table:
    """Return header and rows of an evaluation; KL comes first of what was measured, as loss hides what it shows."""
    if report.measured == "score":
        return ("model", "size", "bits/weight", "score", "retention"), [
            [row.name, human_bytes(row.bytes), _bits(row.bits), f"{row.value:.6g}", _percent(row.retention)] for row in report.rows
        ]
    header = ("model", "size", "bits/weight", "KL", "agreement", "loss", "retention")
    return header, [_of_text(row) for row in report.rows]


def _of_text(row: EvaluateRow) -> list[str]:
    kept = _percent(row.retention)
    if row.retention_error:
        kept += f" +-{100 * row.retention_error:.1f}"
    kl = "" if row.kl is None else f"{row.kl:.4f}"
    return [row.name, human_bytes(row.bytes), _bits(row.bits), kl, _percent(row.agreement), f"{row.value:.4f}", kept]


def tuned_rows(report: TuneReport) -> Table:
    """Return header and rows of a search for factors, before and after."""
    number = "score" if report.objective == "score" else "loss"
    with_kl, with_retention = (any(value is not None for value in column) for column in _optional(report.packs))
    header = ["pack", "size", number, *(["KL"] if with_kl else []), *(["retention"] if with_retention else [])]
    return header, [_tuned(pack, with_kl, with_retention) for pack in report.packs]


def _optional(packs: Sequence[TunedPack]) -> tuple[list[float | None], list[float | None]]:
    return [pack.kl for pack in packs], [pack.retention for pack in packs]


def _tuned(pack: TunedPack, with_kl: bool, with_retention: bool) -> list[str]:
    cells = [str(pack.pack), human_bytes(pack.bytes), f"{pack.before:.4f} -> {pack.after:.4f}"]
    if with_kl:
        cells.append("" if pack.kl is None or pack.kl_before is None else f"{pack.kl_before:.4f} -> {pack.kl:.4f}")
    if with_retention:
        cells.append(f"{_percent(pack.retention_before)} -> {_percent(pack.retention)}")
    return cells


def tuned_fields(report: TuneReport) -> list[tuple[str, str]]:
    """Return what was found, in two columns."""
    fields = [("measured", count_of(report.evaluations, "model"))]
    if report.chosen is None:
        return fields
    groups = report.packs[-1].groups
    fields += [("factor" if len(groups) == 1 else f"factor of {group.name}", f"{group.factor:.4g} of the pack's own") for group in groups]
    if report.keep is not None:
        fields.append(("smallest", f"{report.chosen}, which keeps {_percent(report.packs[-1].retention)}"))
    written: Path | None = report.out
    return [*fields, ("written", f"{written}, {human_bytes(report.out_bytes)}" if written is not None else "nothing: no -o")]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _bits(bits: float | None) -> str:
    return "" if bits is None else f"{bits:.3g}"
