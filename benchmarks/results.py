"""What a benchmark measured, as records, and as the files of a folder: a table each, and what belongs to all tables of a section."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["DATA", "Cell", "Section", "Table", "load_sections", "machine", "median_seconds", "progress", "save_section", "text_of"]

Cell = str | int | float | None
DATA = Path(__file__).with_name("results")
SECTIONS = "sections.json"
_LIBRARIES = ("deltapack", "numpy", "numba", "torch", "transformers", "zstandard")
_INTEGER, _FLOAT = re.compile(r"-?\d+"), re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: What its file is called, after the name of the section; the file of a section's only table may do without.
        caption: What it shows.
        headers: Names of the columns.
        rows: Cells; floats are printed with 4 significant digits and kept with 6, none is printed as `-`.
        plot: File name of the plot that shows it, if there is one.
    """

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    plot: str = ""

    def markdown(self, level: int = 3) -> str:
        lines = ["| " + " | ".join(self.headers) + " |", "|---" * len(self.headers) + "|"]
        lines += ["| " + " | ".join(map(text_of, row)) + " |" for row in self.rows]
        return f"{'#' * level} {self.caption}\n\n" + "\n".join(lines) + "\n"


def machine() -> str:
    """Return processor, cores, memory and library versions in one line."""
    parts = [_processor(), f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"]
    if hasattr(os, "sysconf"):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB RAM")
    parts += [platform.system(), f"python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}" if name != "deltapack" else _own_version())
    return ", ".join(parts)


@dataclass(frozen=True)
class Section:
    """What one script found.

    Attributes:
        title: Of the section.
        command: What measured it.
        tables: What was measured.
        notes: Sentences that say how to read them.
        day: When, as YYYY-MM-DD.
        place: Where: processor, cores, memory and versions.
    """

    title: str
    command: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    day: str = field(default_factory=lambda: date.today().isoformat())
    place: str = field(default_factory=machine)

    @property
    def key(self) -> str:
        """The title as the beginning of file names."""
        return self.title.lower().replace(" ", "-")

    def file_of(self, table: Table) -> str:
        """Return the name of a table's file."""
        return f"{self.key}-{table.name}.csv" if table.name else f"{self.key}.csv"

    def markdown(self) -> str:
        head = f"## {self.title}\n\n`{self.command}`, {self.day}, {self.place}\n"
        notes = "".join(f"- {note}\n" for note in self.notes)
        return "\n".join([head, *(table.markdown() for table in self.tables), *([notes] if notes else [])])


def text_of(cell: Cell) -> str:
    """Return a cell as people read it."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def _own_version() -> str:
    from deltapack import __version__

    return f"deltapack {__version__}"


def median_seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the median duration of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def progress(text: str) -> None:
    """Tell a waiting person what is being measured."""
    print(f"... {text}", file=sys.stderr, flush=True)


def save_section(section: Section, folder: Path = DATA) -> None:
    """Write a section's tables as CSV files, in place of those that it had; other sections stay as they are."""
    folder.mkdir(exist_ok=True)
    sections = _index(folder)
    drawn = {table.plot for table in section.tables}
    for table in sections.get(section.title, {}).get("tables", ()):
        (folder / table["file"]).unlink(missing_ok=True)
        if table["plot"] and table["plot"] not in drawn:
            (folder / table["plot"]).unlink(missing_ok=True)
    kept = []
    for table in section.tables:
        file = section.file_of(table)
        with (folder / file).open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerows([table.headers, *([_stored(cell) for cell in row] for row in table.rows)])
        kept.append({"file": file, "name": table.name, "caption": table.caption, "plot": table.plot})
    sections[section.title] = asdict(section) | {"tables": kept}
    (folder / SECTIONS).write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_sections(folder: Path = DATA) -> dict[str, Section]:
    """Return all sections that were saved, by title."""
    return {
        title: Section(
            title, kept["command"], tuple(_load_table(folder, **table) for table in kept["tables"]), tuple(kept["notes"]), kept["day"],
            kept["place"],
        )
        for title, kept in _index(folder).items()
    }  # fmt: skip


def _load_table(folder: Path, file: str, name: str, caption: str, plot: str) -> Table:
    with (folder / file).open(encoding="utf-8", newline="") as lines:
        headers, *rows = csv.reader(lines)
    return Table(name, caption, tuple(headers), tuple(tuple(map(_loaded, row)) for row in rows), plot)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / SECTIONS
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _stored(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _loaded(text: str) -> Cell:
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text or None
