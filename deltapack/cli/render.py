"""Text for people (sizes, tables, paragraphs, a progress bar) and for programs (JSON)."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from deltapack.cli.terminal import columns_of, fitted, has_colours

__all__ = [
    "count_of",
    "escaped",
    "human_bytes",
    "kinds_line",
    "print_fields",
    "print_json",
    "print_notes",
    "print_paragraph",
    "print_parts",
    "print_table",
    "show_progress",
    "weight_files_field",
]

_WIDEST = 100
"""Columns beyond which a paragraph is hard to read."""

Progress = Callable[[int, int], None]


def escaped(text: object) -> str:
    """Return one line of text with everything that is not printable escaped.

    Names and messages come from files that anyone may have written; a terminal must not obey them.
    """
    return "".join(char if char.isprintable() else _escape(char) for char in str(text))


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def human_bytes(count: int) -> str:
    """Return a size in decimal units.

    >>> human_bytes(999), human_bytes(1_234), human_bytes(90_900_000)
    ('999 B', '1.2 kB', '90.9 MB')
    """
    if count < 1000:
        return f"{count} B"
    size, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB", "PB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}"


def count_of(count: int, noun: str) -> str:
    """Return a number and what it counts.

    >>> count_of(1, "tensor"), count_of(1_234, "tensor")
    ('1 tensor', '1,234 tensors')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kinds_line(kinds: Mapping[str, int]) -> str:
    """Return the tensors by entry kind.

    >>> kinds_line({"delta": 101, "unchanged": 2})
    '101 delta, 2 unchanged'
    """
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "none"


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print labels and their values in two columns; on a terminal long values go on below themselves."""
    rows = list(fields)
    width = max(len(label) for label, _ in rows)
    columns = columns_of(sys.stdout)
    for label, value in rows:
        text = escaped(value)
        line = f"{label:<{width}}  {text}".rstrip()
        if columns is not None and len(line) > columns:
            longest = max(map(len, text.split()), default=0)
            indent = max(0, min(width + 2, columns - longest))  # a digest fits beside the longest label
            line = textwrap.fill(line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
        click.echo(line)


def weight_files_field(count: int) -> list[tuple[str, str]]:
    """Return the field that says how many weight files come back byte for byte; none where none does."""
    return [("weight files", f"restored byte for byte: {count:,}")] if count else []


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, drop: Sequence[str] = ()) -> None:
    """Print an aligned table; a terminal that is too narrow for it gets fewer columns and shorter names.

    Args:
        header: Title of each column; titles differ.
        rows: Cells.
        left: Number of leading columns that are aligned to the left; the others are figures.
        drop: Titles of columns that a narrow terminal can do without, the least needed first.
    """
    lines: list[list[str]] = [list(header), *([escaped(cell) for cell in row] for row in rows)]
    columns, gone = columns_of(sys.stdout), list[str]()
    if columns is not None:
        lines, gone = fitted(lines, columns, drop)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    flush_left = set(header[:left])
    titles = lines[0]
    coloured = has_colours(sys.stdout)
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if title in flush_left else cell.rjust(width) for title, cell, width in zip(titles, line, widths, strict=True)
        ]
        text = "  ".join(cells).rstrip()
        click.echo("  " + (click.style(text, bold=True) if coloured and not number else text), color=coloured)
    if gone:
        told = f"(not shown, as the terminal is narrow: {', '.join(gone)}; --json has all)"
        click.echo(textwrap.fill(told, columns or _WIDEST, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


def print_parts(names: Mapping[str, str], split: Mapping[str, int], total: int) -> None:
    """Print what a pack of `total` bytes is made of, without parts that it has not.

    Args:
        names: What parts are called for people; others as they are.
        split: Bytes of each part.
        total: Bytes of the pack.
    """
    there = [(names.get(part, part), count) for part, count in split.items() if count]
    print_table(("part", "bytes", "share"), [(part, f"{count:,}", f"{100 * count / total:.1f} %") for part, count in there])


def print_paragraph(label: str, text: str) -> None:
    """Print `label: text` on stderr: one line, or wrapped between words where a terminal shows it."""
    message = escaped(f"{label}: {text}" if label else text)
    columns = columns_of(sys.stderr)
    if columns is not None:
        message = textwrap.fill(message, min(columns, _WIDEST), break_long_words=False, break_on_hyphens=False)
    click.echo(message, err=True)


def print_notes(notes: Sequence[str], warnings: Sequence[str] = ()) -> None:
    """Print what was noticed, on stdout, and what needs attention, on stderr."""
    for note in notes:
        click.echo(f"Note: {escaped(note)}")
    for warning in warnings:
        print_paragraph("Warning", warning)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout; numbers that JSON does not have become null."""
    click.echo(json.dumps(_finite(document), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_progress(label: str, *, quiet: bool, unit: str = "bytes") -> AbstractContextManager[Progress | None]:
    """Return a context whose value is a `progress(done, total)` callback that draws a bar on stderr.

    Where nobody would see it (not a terminal, or `quiet`) the value is `None`.

    Args:
        label: What is going on, such as `"compressing"`.
        quiet: Whether the user asked for silence.
        unit: `"bytes"`, or the plural of what is counted.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return nullcontext()
    from deltapack.cli.progress import progress_bar  # rich takes longer to import than `inspect` takes to run

    return progress_bar(label, unit)
