"""`deltapack evaluate` and `tune`: how use cases are called, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Pair, Run, StandIn

from deltapack.analysis.reports import EvaluateReport, EvaluateRow, TunedGroup, TunedPack, TuneReport


@pytest.fixture
def evaluated() -> EvaluateReport:
    rows = [
        EvaluateRow("base", 91_000_000, None, 3.25, 0.41, 0.7, 0.0, 0.0),
        EvaluateRow("fine-tune", 91_000_000, None, 2.5, 0.0, 1.0, 1.0, 0.0),
        EvaluateRow("math.dpk", 284_000, 0.1, 2.5125, 0.00251, 0.974, 0.9833, 0.0041),
    ]
    return EvaluateReport(Path("base"), Path("tuned"), "loss", 16_384, rows, ["look twice"])


@pytest.fixture
def tuned() -> TuneReport:
    groups = [TunedGroup("layers 0 to 3", 28, 0.91), TunedGroup("outside of the layers", 2, 0.8)]
    row = TunedPack("math.dpk", 284_000, groups, 2.6, 2.55, 0.01, 0.008, 0.9, 0.95)
    return TuneReport("kl", [row], "math.dpk", Path("out.dpk"), 284_100, 0.95, 17, [])


def test_evaluate_prints_a_table(pair: Pair, run: Run, stand_in: StandIn, evaluated: EvaluateReport) -> None:
    recorder = stand_in("evaluate", evaluated)
    result = run("evaluate", pair.base, pair.finetuned, pair.pack, "--text", __file__, "--tokens", 640, "--dtype", "bf16", "--workers", 2)
    assert result.exit_code == 0, result.output
    assert recorder.args == (pair.base, pair.finetuned, (pair.pack,))
    assert recorder.kwargs | {"progress": None} == {
        **{"text": Path(__file__), "score": None, "tokens": 640, "window": 512, "device": None, "dtype": "bf16"},
        **{"workers": 2, "progress": None, "html": None, "force": False},
    }
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["model", "size", "bits/weight", "KL", "agreement", "loss", "retention"]
    assert lines[3].split() == ["math.dpk", "284.0", "kB", "0.1", "0.0025", "97.4", "%", "2.5125", "98.3", "%", "+-0.4"]
    assert "Warning: look twice" in result.stderr


def test_evaluate_by_a_program(pair: Pair, run: Run, stand_in: StandIn) -> None:
    rows = [EvaluateRow("base", 10, None, 0.125), EvaluateRow("p.dpk", 5, 4.0, 0.5, retention=0.75)]
    recorder = stand_in("evaluate", EvaluateReport(Path("b"), Path("f"), "score", 0, rows))
    result = run("evaluate", pair.base, pair.finetuned, pair.pack, "--eval", "python my.py {model}")
    assert recorder.kwargs["score"] == "python my.py {model}" and recorder.kwargs["text"] is None
    assert result.stdout.splitlines()[2].split() == ["p.dpk", "5", "B", "4", "0.5", "75.0", "%"]


@pytest.mark.parametrize("name", ["evaluate", "tune"])
def test_json_is_the_report(name: str, pair: Pair, run: Run, stand_in: StandIn, evaluated: EvaluateReport, tuned: TuneReport) -> None:
    report = evaluated if name == "evaluate" else tuned
    stand_in(name, report)
    paths = [pair.base, *([pair.finetuned] if name == "evaluate" else []), pair.pack]
    result = run(name, *paths, "--text", __file__, "--json")
    assert json.loads(result.stdout) == json.loads(json.dumps(report.to_json()))
    quiet = run(name, *paths, "--text", __file__, "--quiet")
    assert quiet.stdout == ""


def test_tune_prints_what_it_found(pair: Pair, run: Run, stand_in: StandIn, tuned: TuneReport) -> None:
    recorder = stand_in("tune", tuned)
    words = ["--text", __file__, "--finetuned", pair.finetuned, "--groups", 2, "--keep", 0.95, "--factors", "-o", "out.dpk", "--force"]
    result = run("tune", pair.base, pair.pack, *words)
    assert result.exit_code == 0, result.output
    assert recorder.args == (pair.base, (pair.pack,), Path("out.dpk"))
    wanted = {"finetuned": pair.finetuned, "groups": 2, "keep": 0.95, "factors": True, "force": True, "text": Path(__file__)}
    assert recorder.kwargs.items() >= wanted.items()
    assert "math.dpk  284.0 kB  2.6000 -> 2.5500  0.0100 -> 0.0080  90.0 % -> 95.0 %" in result.stdout
    assert "factor of layers 0 to 3          0.91 of the pack's own" in result.stdout
    assert "which keeps 95.0 %" in result.stdout and "out.dpk, 284.1 kB" in result.stdout


def test_tune_says_when_no_pack_keeps_enough(pair: Pair, run: Run, stand_in: StandIn, tuned: TuneReport) -> None:
    row = TunedPack("math.dpk", 284_000, [TunedGroup("all", 2, 1.0)], 2.6, 2.6)
    stand_in("tune", TuneReport("loss", [row], None, None, 0, 0.99, 9))
    result = run("tune", pair.base, pair.pack, "--text", __file__)
    assert result.exit_code == 1 and "no pack keeps 0.99 of" in result.stderr and "KL" not in result.stdout
    assert "give larger ones" in result.stderr
    alone = run("tune", pair.base, "--text", __file__, "--finetuned", pair.finetuned, "--keep", 0.99)
    assert alone.exit_code == 1 and "measure one of `deltapack compress --target-bits 2`" in alone.stderr


@pytest.mark.parametrize("option", ["--tokens", "--window", "--device", "--dtype"])
def test_how_a_text_is_read_is_nothing_to_a_program(option: str, pair: Pair, run: Run, stand_in: StandIn) -> None:
    value = {"--device": "cpu", "--dtype": "f32"}.get(option, "64")
    for name, paths in (("evaluate", (pair.base, pair.finetuned, pair.pack)), ("tune", (pair.base, pair.pack))):
        result = run(name, *paths, "--eval", "true {model}", option, value)
        assert result.exit_code == 2 and f"{option} does nothing beside --eval" in result.stderr


def test_errors_are_exit_codes(pair: Pair, run: Run) -> None:
    for name, paths in (("evaluate", (pair.base, pair.finetuned, pair.pack)), ("tune", (pair.base, pair.pack))):
        result = run(name, *paths)
        assert result.exit_code == 2 and "one of --text and --eval" in result.stderr
    assert run("tune", pair.base, pair.pack, "--eval", "false {model}").exit_code == 2
