"""The page of an evaluation: what packs keep, over their bits."""

from __future__ import annotations

from deltapack.analysis.charts import Axis, Series, line_chart
from deltapack.analysis.pages import fields, page, paragraphs, section, table
from deltapack.analysis.reports import EvaluateReport, EvaluateRow

__all__ = ["evaluation_page"]


def evaluation_page(report: EvaluateReport) -> str:
    """Return the page."""
    on_text = report.measured == "loss"
    read = [("read", f"{report.tokens:,} tokens")] if on_text else []
    head = fields([("base", str(report.base)), ("fine-tune", str(report.finetuned)), *read])
    header: tuple[str, ...] = ("model", "bytes", "bits a weight", "KL", "agreement", "loss" if on_text else "score", "retention")
    rows = [_cells(row) for row in report.rows]
    if not on_text:
        header, rows = (header[0], header[1], header[2], header[5], header[6]), [[*row[:3], *row[5:]] for row in rows]
    packs = [row for row in report.rows if row.bits is not None]
    return page(
        "What packs keep of a fine-tune",
        [
            head,
            paragraphs(report.warnings, "warn"),
            table(header, rows),
            section(
                "KL to the fine-tune",
                "How far the predictions of the next token are from the fine-tune's, in nats a token; less is better.",
                _chart(packs, "KL, nats a token", [row.kl for row in packs], log=True),
            ),
            section(
                "Retention",
                "Share of what the fine-tune gained over the base that is kept.",
                _chart(packs, "retention, %", [None if row.retention is None else 100 * row.retention for row in packs], log=False),
            ),
        ],
    )


def _chart(packs: list[EvaluateRow], title: str, values: list[float | None], *, log: bool) -> str:
    points = [(row, value) for row, value in zip(packs, values, strict=True) if value is not None]
    labels = [f"{row.name}: {value:.4g}" for row, value in points]
    series = Series("packs", [(row.bits or 0.0, value) for row, value in points], labels, joined=False)
    return line_chart(title, Axis("bits a weight", True), Axis(title, log), [series])


def _cells(row: EvaluateRow) -> list[str]:
    kept = "" if row.retention is None else f"{100 * row.retention:.1f} %"
    return [
        row.name,
        f"{row.bytes:,}",
        "" if row.bits is None else f"{row.bits:.3g}",
        "" if row.kl is None else f"{row.kl:.4f}",
        "" if row.agreement is None else f"{100 * row.agreement:.1f} %",
        f"{row.value:.4f}" if row.kl is not None else f"{row.value:.6g}",
        f"{kept} ± {100 * row.retention_error:.1f}" if row.retention_error else kept,
    ]
