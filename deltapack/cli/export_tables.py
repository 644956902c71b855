"""What `deltapack export` prints about what it has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deltapack.cli.render import count_of, human_bytes, print_fields, print_table

if TYPE_CHECKING:
    from deltapack.exporting.adapter import AdapterReport
    from deltapack.exporting.differences import DifferenceReport
    from deltapack.exporting.restored_model import TorchReport
    from deltapack.packs.model_folder import FolderReport
    from deltapack.reports import ApplyReport

__all__ = ["print_adapter", "print_difference", "print_folder", "print_full", "print_torch"]

_SHOWN = 10
"""Weights of an adapter that are shown: those with the largest errors."""


def print_folder(report: FolderReport) -> None:
    """Print what transformers loads."""
    at = "" if report.revision is None else f" at {report.revision}"
    print_fields(
        [
            ("folder", f"{report.out}, for transformers"),
            ("size", f"{human_bytes(report.bytes)} ({report.bytes:,} bytes), {report.pack.name} in place of weights"),
            ("base", f"{report.base}{at}"),
        ]
    )


def print_adapter(report: AdapterReport) -> None:
    """Print what PEFT loads, and how near it is."""
    ranks = sorted({row.rank for row in report.rows})
    span = "none" if not ranks else f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    print_fields(
        [
            ("folder", f"{report.out}, for peft"),
            ("size", f"{human_bytes(report.bytes)} ({report.bytes:,} bytes)"),
            ("factors", f"of {count_of(len(report.rows), 'weight')}, rank {span}"),
            ("energy kept", f"{100 * report.energy:.2f} % of the differences of these weights"),
            ("relative error", f"{report.error:.4f}"),
            ("saved whole", count_of(len(report.whole), "tensor")),
            ("left out", count_of(len(report.left_out), "tensor")),
        ]
    )
    worst = sorted(report.rows, key=lambda row: -row.error)[:_SHOWN]
    if worst:
        click.echo()
        title = "largest errors" if len(report.rows) > _SHOWN else "weight"
        rows = [(row.tensor, str(row.rank), f"{100 * row.energy:.2f} %", f"{row.error:.4f}") for row in worst]
        print_table((title, "rank", "energy", "error"), rows)


def print_difference(report: DifferenceReport) -> None:
    """Print what a file of differences holds."""
    whole = f", and {count_of(len(report.whole), 'tensor')} whole" if report.whole else ""
    print_fields(
        [
            ("file", str(report.out)),
            ("size", human_bytes(report.out.stat().st_size)),
            ("holds", f"{count_of(report.differences, 'difference')}{whole}"),
        ]
    )


def print_torch(report: TorchReport) -> None:
    """Print which files of PyTorch there are."""
    print_fields(
        [
            ("folder", str(report.out)),
            ("size", f"{human_bytes(report.bytes)} in {count_of(len(report.files), 'file')}: {report.files[0]}"),
            ("tensors", f"{report.tensors:,}"),
        ]
    )


def print_full(report: ApplyReport) -> None:
    """Print what was restored."""
    checked = "every digest compared" if report.verified else "not every digest is known"
    print_fields(
        [("restored", str(report.out)), ("tensors", f"{report.tensors:,}, {human_bytes(report.tensor_bytes)}"), ("checked", checked)]
    )
