"""Counts of what tests tried, printed when they are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

__all__ = ["counted", "print_counts"]


def counted(label: str, record_property: Any) -> Iterator[Counter[str]]:
    """Be a fixture: counts by name, which `print_counts` adds up over the tests of a run."""
    counts: Counter[str] = Counter()
    yield counts
    record_property(label, dict(counts))


def print_counts(label: str, reporter: Any) -> None:
    """Print the counts of a label in the summary of a run."""
    counts: Counter[str] = Counter()
    for kind in ("passed", "failed", ""):
        for report in reporter.stats.get(kind, ()):
            if getattr(report, "when", "") == "teardown":
                for name, found in report.user_properties:
                    counts.update(found if name == label else {})
    if counts:
        reporter.section(label)
        for what, count in sorted(counts.items()):
            reporter.write_line(f"{count:>9,} {what}")
