"""What the merge command prints of its reports: every figure, at its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deltapack.cli.merge_tables import print_explanation, print_merge, print_preview, print_survey
from deltapack.reports import ExplainReport, ExplainRow, LayerRow, MergeReport, PreviewReport, SurveyReport


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[list[str]]]:
    """Return a function that gives the words of each line printed so far."""
    return lambda: [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_merge(lines: Callable[[], list[list[str]]]) -> None:
    print_merge(MergeReport(Path("out"), 3, 4096, [("a.dpk", 0.25), ("b.dpk", None)]), "ties")
    found = lines()
    assert found[:3] == [["merged", "out"], ["method", "ties"], ["tensors", "3", "tensors,", "4.1", "kB"]]
    assert found[-2:] == [["a.dpk", "0.25"], ["b.dpk", "by", "tensor"]]


def test_a_merged_pack_is_as_large_as_its_file(lines: Callable[[], list[list[str]]], tmp_path: Path) -> None:
    (tmp_path / "x.dpk").write_bytes(bytes(1300))
    print_merge(MergeReport(tmp_path / "x.dpk", 3, 4096, [("a.dpk", 0.25)]), "linear")
    assert lines()[1] == ["size", "1.3", "kB"]


def test_a_preview(lines: Callable[[], list[list[str]]]) -> None:
    report = PreviewReport(
        Path("out"),
        "ties",
        "base + sum",
        [("a.dpk", 0.5)],
        {"merged": 3, "from the base": 1},
        {"f32": 4},
        [("embed", 1000, 1234)],
        "a.dpk",
        bytes=7_000_000,
        bytes_free=9_000_000_000,
        memory=12_000_000,
    )
    print_preview(report)
    found = [" ".join(line) for line in lines()]
    assert found[:8] == [
        "would merge out",
        "method ties: base + sum",
        "tensors 3 merged, 1 from the base",
        "types 4 f32",
        "config, tokenizer from a.dpk",
        "disk 7.0 MB needed, 9.0 GB free",
        "memory about 12.0 MB of buffers",
        "rows change embed: 1,000 to 1,234",
    ]
    assert found[-1] == "a.dpk 0.5"


def test_a_survey(lines: Callable[[], list[list[str]]]) -> None:
    layer = LayerRow("layer 3", 200, 50, 0.25, 0.5, 0.125, (1.5, 2.5), (0.75, 0.25))
    total = LayerRow("all", 0, 0, 0.0, 0.0, None, (0.0, 0.0), (0.0, 0.0))
    print_survey(SurveyReport(["x/a.dpk", "y/b.dpk"], [layer], total))
    found = [" ".join(line) for line in lines()]
    assert "changed overlap conflicts cosine norm a norm b share a share b" in found[1]
    assert "layer 3 25.0 % 25.0 % 50.0 % 0.125 1.5 2.5 75.0 % 25.0 %" in found
    assert found[-1] == "all 0.0 % 0.0 % 0.0 % 0 0 0.0 % 0.0 %"


def test_an_explanation(lines: Callable[[], list[list[str]]]) -> None:
    rows = [ExplainRow("a.dpk", 0.5, 0.125, -0.75), ExplainRow("b.dpk", 2.0, 1.0, 0.25)]
    report = ExplainReport("w", 1234, "base + sum", {"lambda": 0.5}, {"energy": [1.5, 2.25]}, rows, 1.0, 0.125, 1.125)
    print_explanation(report)
    found = [" ".join(line) for line in lines()]
    assert found[:5] == ["formula base + sum", "parameters lambda 0.5", "tensor w", "element 1,234", "energy 1.5, 2.25"]
    assert found[-6:-4] == ["a.dpk 0.5 12.5 % -0.75 -0.375", "b.dpk 2 100.0 % 0.25 0.5"]
    assert found[-3:] == ["base 1", "added 0.125", "result 1.125"]
