"""Sizes, tables, escapes and JSON."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapack.cli.render import (
    count_of,
    escaped,
    human_bytes,
    kinds_line,
    print_fields,
    print_json,
    print_notes,
    print_paragraph,
    print_table,
    show_progress,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (90_852_864, "90.9 MB"),
        (13_476_839_424, "13.5 GB"),
        (2 * 10**18, "2000.0 PB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_counts() -> None:
    assert [count_of(n, "tensor") for n in (0, 1, 1234)] == ["0 tensors", "1 tensor", "1,234 tensors"]
    assert kinds_line({"delta": 1200, "stored": 1}) == "1,200 delta, 1 stored"
    assert kinds_line({}) == "none"


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_text_is_one_printable_line(text: str) -> None:
    out = escaped(text)
    assert out.isprintable()
    assert (out == text) == text.isprintable()
    out.encode()


def test_a_terminal_gets_no_commands_from_files(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2Jx\u202ey\udcffz\n"
    print_fields([("name", evil)])
    print_table(("name",), [(evil,)])
    print_notes([evil], [evil])
    print_paragraph("Error", evil)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert shown.err.count("\n") == 2
    assert r"\x1b[2Jx\u202ey\udcffz\n" in shown.out


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "bytes"), [("a", "1"), ("long name", "1,234,567")])
    assert capsys.readouterr().out == "  name           bytes\n  a                  1\n  long name  1,234,567\n"


def test_json_holds_no_strange_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.inf, "b": [math.nan, 1.5], "c": (1, None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [1, None]}


@pytest.mark.parametrize("quiet", [False, True])
def test_no_progress_without_a_terminal(quiet: bool) -> None:
    with show_progress("working", quiet=quiet) as progress:
        assert progress is None


def test_a_bar_is_empty_until_the_work_is_known() -> None:
    from rich.console import Console
    from rich.progress import Progress

    from deltapack.cli.progress import _Bar

    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="standard", legacy_windows=False)
    column = _Bar()
    with Progress(column, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=None)
        for total, done, filled in ((None, 0, False), (10, 0, False), (10, 10, True)):
            progress.update(task, total=total, completed=done)
            bar = column.render(progress.tasks[0])
            with console.capture() as captured:
                console.print(bar)
            assert not bar.pulse and bar.total is not None
            assert (bar.completed > 0) == filled and captured.get().strip()
