"""The cost of a command beside its work."""

from __future__ import annotations

import pytest

from benchmarks import overhead

pytestmark = pytest.mark.slow


def test_every_command_is_timed_with_both_kinds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("compress", "apply", "merge")
    of_all = overhead.Family.commands
    monkeypatch.setattr(overhead.Family, "commands", lambda family: {name: of_all(family)[name] for name in wanted})
    monkeypatch.setattr(overhead, "_size_rows", lambda quick: iter([(1, "apply", 1.0, 1.0)]))
    commands, sizes = overhead.measure(quick=True).tables
    assert [row[0] for row in commands.rows] == [*overhead.STARTS, *wanted]
    assert all(len(row) == len(overhead.HEADERS) and min(float(cell or 0) for cell in row[1:5]) > 0 for row in commands.rows)
    assert [row[5] in ("pass", "FAIL") for row in commands.rows] == [False] * 3 + [True] * 3
    assert len(sizes.rows[0]) == len(overhead.SIZE_HEADERS)
