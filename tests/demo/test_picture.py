"""The demo's picture, in a terminal and in a browser."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from support.browser import look_at

from deltapack.demo.outcome import DemoReport, Row
from deltapack.demo.picture import PICTURE, bars, demo_page
from deltapack.demo.render import print_report

ROWS = (
    Row("base", "base", 8000, {"code": 4.0, "prose": 3.0}, {}),
    Row("code-finetuned", "fine-tune", 8000, {"code": 3.0}, {}),
    Row("code.dpk", "pack", 100, {"code": 3.02}, {"code": 0.98}),
    Row("code-drop0.5.dpk", "pack", 1000, {"code": 3.01}, {"code": 0.99}),
    Row("code-drop0.99.dpk", "pack", 50, {"code": 5.0}, {"code": -1.0}),
    Row("prose.dpk", "pack", 120, {"prose": 2.5}, {"prose": 0.5}),
    Row("merged", "merge", 0, {"code": 3.5, "prose": 2.6}, {"code": 0.5, "prose": 0.25}),
)
REPORT = DemoReport(Path("demo"), ROWS, 12345, 0.6, ("code.dpk", "prose.dpk"), 1.0, 1.0, 1.0)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bars_are_as_long_as_what_they_show(columns: int) -> None:
    lines = list(bars(REPORT, columns))
    assert len(lines) == 1 + len(ROWS) and all(len(line) <= columns for line in lines)
    by_name = {line.split()[0]: line for line in lines[1:]}
    wide = by_name["base"].count("█")
    assert wide >= 4 and by_name["code-finetuned"].count("█") == wide
    assert by_name["code-drop0.5.dpk"].count("█") == wide // 8 + int(wide * 0.99)
    assert by_name["code.dpk"].endswith(" 98 %") and "0.1 kB" in by_name["code.dpk"]
    assert by_name["code-drop0.99.dpk"].endswith("-100 %") and by_name["code-drop0.99.dpk"].count("█") == 0
    assert by_name["merged"].endswith(" 38 %") and "kB" not in by_name["merged"]


def printed(encoding: str) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, write_through=True)
    print_report(REPORT, Console(file=file, width=80))
    return raw.getvalue().decode(encoding)


def test_an_encoding_without_blocks_gets_signs_that_it_has() -> None:
    text = printed("ascii")
    assert "####" in text and "demo/demo.html" in text.replace("\n", "")
    assert "████" in printed("utf-8")


def test_the_page_says_which_pack_is_worth_it() -> None:
    text = demo_page(REPORT)
    assert "code.dpk is 80 times smaller than its checkpoint and keeps 98 % of the gain." in text
    assert text.count("<svg") == 2 and text.count("<tr>") == 1 + len(ROWS) and "-100.0 %" in text
    silent = DemoReport(Path("demo"), ROWS[:2], 5, 0.6, (), 1.0, 1.0, 1.0)
    assert "times smaller" not in demo_page(silent)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 600])
def test_a_browser_shows_it(width: int, tmp_path: Path) -> None:
    page = tmp_path / PICTURE
    page.write_text(demo_page(REPORT), "utf-8")
    seen = look_at(page, tmp_path, width)
    assert seen.console == [] and seen.measured["requests"] == 0 and seen.measured["overflow"] == []
    assert seen.measured["scroll"] <= width and seen.measured["marks"] >= 8


def test_a_run_leaves_it(report: DemoReport) -> None:
    assert all(row.name in (report.folder / PICTURE).read_text("utf-8") for row in report.rows)
