"""The demo's table, and the commands to go on with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from deltapack.demo.outcome import DOMAINS, DemoReport, Row
from deltapack.demo.picture import PICTURE, bars

__all__ = ["commands", "print_report", "table"]


def print_report(report: DemoReport, console: Console) -> None:
    """Print the table, how to read it, and the commands to try."""
    console.print()
    console.print(table(report))
    plain = not console.encoding.startswith("utf")
    console.print()
    for line in bars(report, console.width, plain=plain):
        console.print(line, markup=False, highlight=False, no_wrap=True)
    console.print()
    console.print(
        "bpb: loss in bits per byte on files that no model has seen; less is better. Retention: how much of its "
        "fine-tune's gain over the base a model keeps, (base - model) / (base - fine-tune). Merged: "
        + " + ".join(f"{report.merge_weight:g} x {pack}" for pack in report.merged)
        + ". Packs without a drop rate in their names have the budget that compress takes by itself.",
        highlight=False,
    )
    console.print(
        f"{report.train_seconds:.0f} s of reading and training, {report.pack_seconds:.1f} s of packing, restoring "
        f"and merging, {report.measure_seconds:.0f} s of measuring.",
        highlight=False,
    )
    console.print(f"\nThe files are in {report.folder}, with charts in {report.folder / PICTURE}. Try:\n", highlight=False, soft_wrap=True)
    for command in commands(report):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def table(report: DemoReport) -> Table:
    """Return the table of a run."""
    title = f"A byte-level Llama of {report.parameters:,} parameters and two fine-tunes"
    result = Table(title=title, title_justify="left")
    result.add_column("model", no_wrap=True)
    result.add_column("size", justify="right")
    result.add_column("ratio", justify="right")
    for domain in DOMAINS:
        result.add_column(f"{domain} bpb", justify="right")
    result.add_column("retention", justify="right")
    checkpoint = report.rows[0].file_bytes
    for rank, row in enumerate(report.rows):
        last = rank + 1 == len(report.rows) or _group(report.rows[rank + 1]) != _group(row)
        result.add_row(*_cells(row, report, checkpoint), end_section=last)
    return result


def commands(report: DemoReport) -> Iterator[str]:
    """Yield shell commands that work on what the run left behind."""

    def path(name: str) -> str:
        return shlex.quote(str(report.folder / name))

    def own(name: str) -> str:  # beside the folder, which else were no more as the demo left it
        return shlex.quote(f"{report.folder}-{name}")

    pack, other = report.merged
    weight = f"{report.merge_weight:g}"
    yield f"deltapack inspect {path(pack)}"
    yield f"deltapack verify {path(pack)} --base {path('base')}"
    yield f"deltapack analyze {path('base')} {path('code-finetuned')}"
    yield f"deltapack compress {path('base')} {path('code-finetuned')} -o {own('my.dpk')} --quality high"
    yield f"deltapack apply {path('base')} {own('my.dpk')} -o {own('restored')}"
    yield (f"deltapack merge {path('base')} {path(pack)} {path(other)} -o {own('merged')} --weight {weight} --weight {weight}")


def _group(row: Row) -> str:
    return re.split("[-.]", row.name)[0] if row.step == "pack" else "merge" if row.step == "merge" else "checkpoint"


def _cells(row: Row, report: DemoReport, checkpoint: int) -> list[str]:
    name = row.name
    if row.step == "merge":
        name = "merged"
    size = f"{row.file_bytes / 1000:,.1f} kB" if row.file_bytes else ""
    ratio = f"{checkpoint / row.file_bytes:.1f}x" if row.step == "pack" else ""
    losses = [f"{row.loss[domain]:.3f}" if domain in row.loss else "" for domain in DOMAINS]
    retention = " / ".join(f"{100 * row.retention[domain]:.0f} %" for domain in DOMAINS if domain in row.retention)
    return [name, size, ratio, *losses, retention]
