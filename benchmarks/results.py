"""What a benchmark measured, as records; printed, or written as one section of RESULTS.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["RESULTS", "Cell", "Section", "Table", "machine", "main", "median_seconds", "progress", "write_section"]

Cell = str | int | float | None
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Measured

Written by the scripts in this folder (`python -m benchmarks`, or one of them, such as `python -m benchmarks.sizes`).
Every section says on which machine and when it was measured. Sizes and errors repeat exactly; seconds and memory vary a little.
"""
_LIBRARIES = ("deltapack", "numpy", "numba", "torch", "transformers", "zstandard")


@dataclass(frozen=True)
class Table:
    """One table; floats are printed with 4 significant digits."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.headers) + " |", "|---" * len(self.headers) + "|"]
        lines += ["| " + " | ".join(map(_text, row)) + " |" for row in self.rows]
        return f"### {self.caption}\n\n" + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Section:
    """What one script found: its command, tables, and sentences that say how to read them."""

    title: str
    command: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        head = f"## {self.title}\n\n`{self.command}`, {date.today().isoformat()}, {machine()}\n"
        notes = "".join(f"- {note}\n" for note in self.notes)
        return "\n".join([head, *(table.markdown() for table in self.tables), *([notes] if notes else [])])


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


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


def _own_version() -> str:
    from deltapack import __version__

    return f"deltapack {__version__}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def median_seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the median duration of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def write_section(section: Section, path: Path = RESULTS) -> None:
    """Replace the section of this title, or add it; other sections stay as they are."""
    text = path.read_text() if path.exists() else HEAD
    head, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    kept = {part.partition("\n")[0].removeprefix("## "): part.strip() + "\n" for part in parts}
    kept[section.title] = section.markdown().strip() + "\n"
    path.write_text("\n".join([head.strip() + "\n", *kept.values()]))


def progress(text: str) -> None:
    """Tell a waiting person what is being measured."""
    print(f"... {text}", file=sys.stderr, flush=True)


def main(measure: Callable[[bool], Section], argv: Sequence[str] | None = None) -> int:
    """Command line of a benchmark: `[--quick] [--json]`. A quick run is a trial and leaves RESULTS.md alone."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="small inputs, a minute or less; does not write RESULTS.md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    section = measure(options.quick)
    print(json.dumps(asdict(section), indent=1) if options.json else section.markdown())
    if not options.quick:
        write_section(section)
    return 0
