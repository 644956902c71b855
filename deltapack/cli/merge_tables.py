"""What `deltapack merge` prints about merges: done, planned, explained, and how packs relate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltapack.cli.render import count_of, human_bytes, kinds_line, print_fields, print_table

if TYPE_CHECKING:
    from deltapack.reports import ExplainReport, LayerRow, MergeReport, PreviewReport, SurveyReport

__all__ = ["print_explanation", "print_merge", "print_preview", "print_survey"]


def print_merge(report: MergeReport, method: str, *, weighted: bool = True) -> None:
    """Print what was merged; `weighted`: whether the method has a weight for each pack."""
    amount = f"{count_of(report.tensors, 'tensor')}, {human_bytes(report.tensor_bytes)}"
    size = [("size", human_bytes(report.out.stat().st_size))] if report.out.is_file() else []
    print_fields([("merged", str(report.out)), *size, ("method", method), ("tensors", amount)])
    click.echo()
    _print_weights(report.weights, weighted)


def print_preview(report: PreviewReport, *, weighted: bool = True) -> None:
    """Print what would be merged; `weighted`: whether the method has a weight for each pack."""
    fields = [
        ("would merge", str(report.out)),
        ("method", f"{report.method}: {report.formula}"),
        ("tensors", kinds_line(report.tensors)),
        ("types", kinds_line(report.dtypes)),
        ("config, tokenizer", f"from {report.assets or 'the base'}"),
        ("disk", f"{human_bytes(report.bytes)} needed, {human_bytes(report.bytes_free)} free"),
        ("memory", f"about {human_bytes(report.memory)} of buffers"),
    ]
    fields += [("rows change", f"{name}: {before:,} to {after:,}") for name, before, after in report.grown]
    print_fields(fields)
    click.echo()
    _print_weights(report.weights, weighted)


def print_survey(survey: SurveyReport) -> None:
    """Print how packs relate, layer by layer."""
    click.echo()
    names = [Path(pack).stem for pack in survey.packs]
    header = ("", "changed", "overlap", "conflicts", "cosine", *(f"norm {name}" for name in names), *(f"share {name}" for name in names))
    print_table(header, [_layer(row) for row in (*survey.layers, survey.total)])


def _layer(row: LayerRow) -> tuple[str, ...]:
    changed = row.changed / row.elements if row.elements else 0.0
    return (
        row.name,
        _percent(changed),
        _percent(row.overlap),
        _percent(row.conflicts),
        "" if row.cosine is None else f"{row.cosine:.3f}",
        *(f"{norm:.3g}" for norm in row.norms),
        *map(_percent, row.shares),
    )


def print_explanation(report: ExplainReport) -> None:
    """Print the formula and its numbers."""
    options = ", ".join(f"{name} {value:g}" for name, value in sorted(report.options.items())) or "none"
    fields = [("formula", report.formula), ("parameters", options), ("tensor", report.tensor), ("element", f"{report.element:,}")]
    fields += [(name, ", ".join(f"{value:.9g}" for value in values)) for name, values in report.measured.items()]
    print_fields(fields)
    click.echo()
    rows = [
        (row.pack, f"{row.weight:g}", _percent(row.density), f"{row.delta:.9g}", f"{row.weight * row.delta:.9g}") for row in report.rows
    ]
    print_table(("pack", "weight", "keeps", "delta", "weight * delta"), rows)
    click.echo()
    print_fields([("base", f"{report.base:.9g}"), ("added", f"{report.added:.9g}"), ("result", f"{report.result:.9g}")])


def _print_weights(weights: Sequence[tuple[str, float | None]], weighted: bool) -> None:
    if weighted:
        print_table(("pack", "weight"), [(name, "by tensor" if weight is None else f"{weight:g}") for name, weight in weights])
    else:
        print_table(("pack (the method has no weights)",), [(name,) for name, _ in weights])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
