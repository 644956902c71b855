"""Sizes, tables, escapes and JSON."""

from __future__ import annotations

import io
import json
import math
import sys

import click
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
from deltapack.cli.terminal import shortened


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


HEADER = ("tensor", "role", "kind", "kept", "bytes")
ROWS = [(f"model.layers.{number}.mlp.gate_up_proj.with_a_long_name.weight", "weight", "delta", "1,234", "99") for number in range(3)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, columns: int, **environment: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": str(columns), "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream)
    print_table(HEADER, ROWS, left=3, drop=("role", "kept", "kind"))
    print_fields([("id", "word " * 40)])
    return stream.getvalue()


def test_a_digest_fits_a_terminal_of_eighty(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("deltapack.cli.render.columns_of", lambda _: 80)
    print_fields([("bits per weight", "2.0"), ("content id", "e" * 64), ("base", f"{'f' * 64} (3 tensors)"), ("result", "")])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "content id",
        " " * 16 + "e" * 64,
        "base",
        " " * 16 + "f" * 64,
        " " * 16 + "(3 tensors)",
        "result",
    ]


@pytest.mark.parametrize(("columns", "gone"), [(34, 3), (60, 1), (80, 0), (120, 0)])
def test_a_terminal_gets_what_fits(columns: int, gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_on(monkeypatch, Terminal(), columns, NO_COLOR="1").splitlines()
    table = lines[:4]
    assert all(len(line) <= columns for line in table)
    titles = table[0].split()
    assert titles[0] == "tensor" and titles[-1] == "bytes" and len(titles) == 5 - gone
    told = " ".join(" ".join(lines).split()).partition("not shown")[2]
    assert ("--json has all" in told) == (gone > 0) and all(title in told for title in ("role", "kept", "kind")[:gone])
    assert len({line.split()[0] for line in table[1:]}) == (1 if columns == 34 else 3)
    assert all(line.split()[0].endswith("weight") for line in table[1:])
    fields = [line for line in lines if "word" in line]
    assert len(fields) > 1 and all(len(line) <= columns and line[:4] in ("id  ", "    ") for line in fields)


def test_what_is_no_terminal_gets_all_whatever_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}]
    texts = {shown_on(monkeypatch, io.StringIO(), 40, **environment) for environment in given}
    (text,) = texts
    assert "\x1b" not in text and ROWS[0][0] in text and "role" in text and "--json" not in text
    forced = shown_on(monkeypatch, io.StringIO(), 40, FORCE_COLOR="1")
    assert "\x1b[1m" in forced and click.unstyle(forced) == text


def test_a_terminal_has_colours_unless_it_is_dumb_or_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1m" in shown_on(monkeypatch, Terminal(), 120)
    for environment in ({"TERM": "dumb"}, {"NO_COLOR": "1"}):
        assert "\x1b" not in shown_on(monkeypatch, Terminal(), 120, **environment)


@given(st.text(max_size=60), st.integers(1, 60))
def test_what_is_shortened_keeps_its_ends(text: str, width: int) -> None:
    short = shortened(text, width)
    assert len(short) == min(len(text), width)
    if short != text:
        front, end = short.split("…", 1) if text.count("…") == 0 else (short[:1], "")
        assert text.startswith(front) and text.endswith(end)


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
