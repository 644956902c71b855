"""The command line of a benchmark, and what becomes of its results: data files, and the pages that are made of all of them.

`python -m benchmarks.command` writes the pages anew without measuring anything, as after a change of `benchmarks.summary`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.results import DATA, Section, load_sections, save_section
from benchmarks.summary import index_page, summary_page

__all__ = ["PAGE", "keep", "main", "write_pages"]

PAGE = Path(__file__).with_name("RESULTS.md")


def main(measure: Callable[[bool], Section], argv: Sequence[str] | None = None) -> int:
    """Command line of a benchmark: `[--quick] [--json]`. A quick run is a trial and keeps nothing."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="small inputs, a minute or less; writes nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(argv)
    section = measure(options.quick)
    print(json.dumps(asdict(section), indent=1) if options.json else section.markdown())
    if not options.quick:
        keep(section)
    return 0


def keep(section: Section) -> None:
    """Write a section's data files, and the pages anew."""
    save_section(section)
    write_pages()


def write_pages(data: Path = DATA, page: Path = PAGE) -> None:
    """Write the summary, and the index that lies among the data files."""
    sections = load_sections(data)
    page.write_text(summary_page(sections), "utf-8")
    (data / "README.md").write_text(index_page(sections), "utf-8")


if __name__ == "__main__":
    write_pages()
