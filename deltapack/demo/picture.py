"""The demo's picture: bars for a terminal, and a page with charts that lies beside the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltapack.analysis.charts import Axis, Series, bar_chart, line_chart
from deltapack.analysis.pages import page, paragraphs, section, table
from deltapack.demo.outcome import DOMAINS, DemoReport, Row

__all__ = ["PICTURE", "bars", "demo_page"]

PICTURE = "demo.html"
"""Its name in the demo's folder."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_WIDEST = 30


def bars(report: DemoReport, columns: int, *, plain: bool = False) -> Iterator[str]:
    """Yield lines with a bar of the size and one of the retention of each row that has them.

    Args:
        report: What the demo found.
        columns: Width of the terminal.
        plain: Whether to draw by `#` alone, for encodings that have no blocks.
    """
    rows = [row for row in report.rows if row.file_bytes or row.retention]
    names = max(len(row.name) for row in rows)
    wide = max(4, min(_WIDEST, (columns - names - 26) // 2))
    whole = max(row.file_bytes for row in rows)
    yield f"{'':{names}}  {'size':{wide}}  {'':>10}  what it keeps"
    for row in rows:
        size = _bar(row.file_bytes / whole, wide, plain)
        told = f"{row.file_bytes / 1000:,.1f} kB" if row.file_bytes else ""
        shares = list(row.retention.values())
        mean = sum(shares) / len(shares) if shares else None
        kept = "" if mean is None else f"{_bar(mean, wide, plain)} {100 * mean:3.0f} %"
        yield f"{row.name:{names}}  {size}  {told:>10}  {kept}".rstrip()


def _bar(share: float, wide: int, plain: bool) -> str:
    """Return a bar of `wide` characters; what is not nothing shows at least a sliver."""
    eighths = round(8 * wide * min(max(share, 0.0), 1.0))
    if share > 0:
        eighths = max(eighths, 1)
    if plain:
        return ("#" * -(-eighths // 8)).ljust(wide)
    full, rest = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")).ljust(wide)


def demo_page(report: DemoReport) -> str:
    """Return the page: sizes, what packs of a size keep, and the figures."""
    header = ("model", "bytes", "smaller", *(f"{domain}, bits a byte" for domain in DOMAINS), "retention")
    checkpoint = report.rows[0].file_bytes
    first = DOMAINS[0]  # the other's are as large, and names of both have no room
    sizes = [(row.name, float(row.file_bytes)) for row in report.rows if row.name.startswith(first)]
    text = f"Bytes of the fine-tune on {first} and of its packs."
    kept = "Share of what each fine-tune gained over the base that its restored packs keep; the fine-tune itself is 100 %."
    return page(
        "What packs keep of two small fine-tunes",
        [
            paragraphs([_said(report)], "say"),
            section("How small they are", text, bar_chart("bytes of packs", Axis(""), Axis("bytes"), sizes)),
            section("What they keep", kept, _kept(report.rows)),
            section(
                "Figures", "Losses are of text that no model has seen.", table(header, [_cells(row, checkpoint) for row in report.rows])
            ),
        ],
    )


def _said(report: DemoReport) -> str:
    packs = [row for row in report.rows if row.step == "pack" and row.retention]
    whole = f"A language model of {report.parameters:,} parameters was trained here, and fine-tuned twice."
    if not packs:
        return whole
    best = max(packs, key=lambda row: (min(row.retention.values()) >= 0.95, -row.file_bytes, row.name))
    checkpoint = next(row.file_bytes for row in report.rows if row.step == "fine-tune")
    share = 100 * min(best.retention.values())
    return (
        f"{whole} {best.name} is {checkpoint / best.file_bytes:,.0f} times smaller than its checkpoint and keeps {share:.0f} % of the gain."
    )


def _kept(rows: Sequence[Row]) -> str:
    series = []
    for domain in DOMAINS:
        own = sorted((row for row in rows if row.step == "pack" and domain in row.retention), key=lambda row: row.file_bytes)
        labels = [f"{row.name}: {100 * row.retention[domain]:.1f} %" for row in own]
        series.append(Series(domain, [(row.file_bytes, 100 * row.retention[domain]) for row in own], labels))
    return line_chart("retention by bytes", Axis("bytes of the pack", True), Axis("retention, %"), [one for one in series if one.points])


def _cells(row: Row, checkpoint: int) -> list[str]:
    losses = [f"{row.loss[domain]:.3f}" if domain in row.loss else "" for domain in DOMAINS]
    ratio = f"{checkpoint / row.file_bytes:,.1f}x" if row.step == "pack" else ""
    retention = " / ".join(f"{100 * row.retention[domain]:.0f} %" for domain in DOMAINS if domain in row.retention)
    return [row.name, f"{row.file_bytes:,}" if row.file_bytes else "", ratio, *losses, retention]
