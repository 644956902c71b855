"""One bench for all of these tests, and the counts of what was tried, printed at the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.fault_runs import Bench, bench

_LABEL = "tried"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if not hasattr(os, "fork"):
        pytest.skip("children are forked")
    with bench(tmp_path_factory.mktemp("faults")) as made:
        made.touched()
        yield made
        assert not made.touched(), "inputs were changed"


@pytest.fixture
def tried(record_property: Any) -> Iterator[Counter[str]]:
    """Counts by name, which the summary adds up."""
    counts: Counter[str] = Counter()
    yield counts
    record_property(_LABEL, dict(counts))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was tried: how many calls failed, states were looked at, processes were killed."""
    reports = [report for kind in ("passed", "failed", "") for report in terminalreporter.stats.get(kind, ())]
    counts: Counter[str] = Counter()
    for report in reports:
        for label, found in getattr(report, "user_properties", ()):
            if label == _LABEL and report.when == "teardown":
                counts.update(found)
        if getattr(report, "when", "") == "call":
            for label, found in getattr(report, "user_properties", ()):
                if label == _LABEL:
                    counts.update(found)
    if counts:
        terminalreporter.section("faults")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:>9,} {name}")
