"""Pages as a person sees them, in a real browser: nothing overflows, nothing is fetched, nothing is said on the console."""

from __future__ import annotations

import re
import xml.dom.minidom
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.browser import look_at

from deltapack.analysis.analysis_page import analysis_page
from deltapack.analysis.charts import Axis, Series, bar_chart, heat_map, line_chart
from deltapack.analysis.evaluation_page import evaluation_page
from deltapack.analysis.findings import AnalysisReport, BudgetRow, DareRow, LayerFinding, RoleRow, TensorFinding
from deltapack.analysis.pages import check_page, write_page
from deltapack.analysis.reports import EvaluateReport, EvaluateRow
from deltapack.errors import OutputError

EVIL = '</td><script>alert("x")</script>\x1b[31m\u202e'


def analysed(layers: int = 12) -> AnalysisReport:
    """A report of a model of some layers, with names that want to be HTML."""
    parts = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")
    tensors = [TensorFinding(f"model.embed{EVIL}", "weight", None, "bf16", (32000, 64), 2048000, 0.9, 0.01, energy=0.3, moved_rows=90)]
    for layer in range(layers):
        for number, part in enumerate(parts):
            name, size = f"model.layers.{layer}.{part}", 1e-4 * (1 + layer) * (1 + number)
            singular = tuple(8 / (1 + k) for k in range(8)) if number < 3 else ()
            kappa = 1e-3 if singular else None
            tensors.append(
                TensorFinding(
                    *(name, "weight" if singular else "vector", layer, "bf16", (64, 64), 4096, 0.1, size, size / 3, size / 4, size / 1.5),
                    *(10 * size, 0.7 / (4 * layers), singular, 1.5 if singular else 0.0, 5 if singular else 0, 30.0, kappa),
                )
            )
    rows = [LayerFinding(f"layer {layer}", 4, 16384, 0.1, 0.01, 0.002 * (1 + layer), 0.05, 15, 30.0, 1e-3) for layer in range(layers)]
    total = LayerFinding("all", len(tensors), 2_100_000, 0.4, 0.02, 0.01, 1.0, 180, 31.0, 9e-4)
    budgets = [
        BudgetRow(bits, int(1e6 * bits), 16 / bits, 1.48 / bits - 1, min(1.0, 2e-3 / bits)) for bits in (2, 1, 0.5, 0.25, 0.1, 0.05, 0.02)
    ]
    dare = [DareRow(rate, 2.8 * (1 - rate), 1 / (1 - rate), 2e-3 / (1 - rate), 3, 1) for rate in (0.9, 0.99)]
    roles = [RoleRow("weight", "matrices and larger: most of the difference is dropped", 37, 2_000_000, 4_000_000, 0.99)]
    histogram = [(0.0, 800_000), *((1e-8 * 2**number, 1000 * (30 - abs(number - 20))) for number in range(28))]
    base, tuned = Path("base"), Path("finetuned")
    said = "Use `deltapack compress --target-bits 0.1`: about 0.1 MB, with an estimated loss of 2 %."
    return AnalysisReport(
        base, tuned, 4_200_000, tensors, rows, total, roles, histogram, budgets, budgets[-1], dare, said, ["look twice"], ["a note"]
    )


def evaluated() -> EvaluateReport:
    packs = [
        EvaluateRow(f"packs/{bits}.dpk", int(1e6 * bits), bits, 2 + 0.1 / bits, 0.001 / bits, 0.97, 1 - 0.01 / bits, 0.004)
        for bits in (1, 0.25, 0.1)
    ]
    ends = [EvaluateRow("base", 10**6, None, 3.0, 0.4, 0.7, 0.0, 0.0), EvaluateRow("fine-tune", 10**6, None, 2.0, 0.0, 1.0, 1.0, 0.0)]
    return EvaluateReport(Path("base"), Path("tuned"), "loss", 16384, [*ends, *packs], ["look twice"])


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = list[str]()
        self.seen = list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "link"):
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


PAGES = {"analysis": analysis_page(analysed()), "evaluation": evaluation_page(evaluated())}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_asks_for_nothing(name: str) -> None:
    parser = Balanced()
    parser.feed(PAGES[name])
    assert not parser.opened and parser.seen.count("svg") >= 2 and not {"script", "img", "iframe", "object"} & set(parser.seen)
    assert set(re.findall(r'(?:href|src|url)[=(]"?([^"\s>)]+)', PAGES[name])) == {"data:,"}
    assert set(re.findall(r"https?://[^\"<\s]+", PAGES[name])) == {"http://www.w3.org/2000/svg"}
    assert "\x1b" not in PAGES[name] and "\u202e" not in PAGES[name]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 600])
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_it(name: str, width: int, tmp_path: Path) -> None:
    page = tmp_path / f"{name}.html"
    write_page(PAGES[name], page, force=False)
    seen = look_at(page, tmp_path, width)
    assert seen.console == []
    assert seen.size == (width, 1600) and seen.picture_bytes > 20_000  # an empty page takes 6,000
    found = seen.measured
    assert found["inner"] == width and found["scroll"] <= width, "tables scroll by themselves, the page does not"
    assert found["requests"] == 0 and found["overflow"] == []
    assert found["title"] == re.findall("<title>(.*?)</title>", PAGES[name])[0]
    charts = found["charts"]
    assert len(charts) == PAGES[name].count("<svg")
    assert all(wide == pytest.approx(min(720, width - 40), abs=1) and high > 60 for wide, high in charts)
    assert found["marks"] > (80 if name == "analysis" else 5) and found["text"] > 300


def test_what_is_odd_is_shown_all_the_same() -> None:
    """Nothing changed, one layer, no layer, no packs that a program measured."""
    report = analysed(1)
    nothing = replace(report, tensors=[], layers=[], budgets=[], dare=[], histogram=[(0.0, 5)], roles=[])
    for odd in (report, replace(report, dare=[]), nothing):
        Balanced().feed(analysis_page(odd))
    assert "<svg" not in analysis_page(nothing)
    rows = [EvaluateRow("base", 10, None, 1.0), EvaluateRow("a.dpk", 10, 0.5, 3.5, retention=None)]
    text = evaluation_page(EvaluateReport(Path("b"), Path("f"), "score", 0, rows))
    assert "3.5" in text and "KL" not in text and "<svg" not in text


def test_many_tensors_are_cut_off() -> None:
    text = analysis_page(analysed(150))
    assert text.count("<tr>") < 620 and "201 more are in the output of --json" in text


def test_charts_leave_out_what_a_logarithm_has_not() -> None:
    axis, log = Axis("x"), Axis("y", True)
    assert line_chart("t", log, log, [Series("s", [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])]) == ""
    shown = line_chart("t", axis, log, [Series("one", [(0.0, 1.0), (1.0, 0.0), (2.0, 10.0)]), Series("two", [(1.0, 3.0)], joined=False)])
    assert shown.count("<circle") == 3 and shown.count("<path") == 1 and shown.count("<li>") == 2
    assert bar_chart("t", axis, log, [("a", 0.0)]) == "" and heat_map("t", ["a"], ["0"], [[0.0]], "") == ""
    same = line_chart("t", axis, axis, [Series("s", [(5.0, 2.0)])])
    for svg in (
        shown.split("<ul")[0],
        same,
        bar_chart("t", axis, axis, [("a", 3.0), ("b", 0.0)]),
        heat_map("t", ["a"], ["0"], [[1.0]], "u"),
    ):
        xml.dom.minidom.parseString(svg)


@pytest.mark.parametrize(("low", "high"), [(0.001, 0.9), (3e-9, 4e-3), (1.0, 1.5), (0.02, 2.0)])
def test_axes_have_a_few_ticks(low: float, high: float) -> None:
    for log in (False, True):
        svg = line_chart("t", Axis("x", log), Axis("y", log), [Series("s", [(low, low), (high, high)])])
        assert 4 <= svg.count('class="tick"') <= 26


def test_only_pages_of_ours_are_replaced(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    write_page(PAGES["evaluation"], page, force=False)
    with pytest.raises(OutputError, match="exists"):
        check_page(page, force=False)
    write_page(PAGES["analysis"], page, force=True)
    page.write_text("<!doctype html>\n<p>my notes</p>")
    with pytest.raises(OutputError, match="no page of deltapack"):
        write_page(PAGES["analysis"], page, force=True)
    assert "my notes" in page.read_text()
    with pytest.raises(OutputError, match="does not exist"):
        check_page(tmp_path / "nowhere" / "a.html", force=False)
