"""`deltapack analyze`: how it is called, and what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.commands import Pair, Run, StandIn


def test_it_shows_what_changed(pair: Pair, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("analyze", pair.base, pair.finetuned, "--html", page, "--tensors")
    assert result.exit_code == 0, result.output
    out = result.stdout
    assert re.search(r"^  weight +most of the difference is dropped +1 ", out, re.M) and re.search(
        r"^  a\.weight +2,000 +0\.0 %", out, re.M
    )
    assert max(map(len, out.split("  layer ")[0].splitlines()[4:])) <= 80
    assert re.search(r"^  outside of the layers +2,000", out, re.M) and "--drop-rate 0.9" in out
    assert f"the page is {page}" in out and "removed, as the fine-tune lacks them: old" in out
    assert page.read_text().startswith("<!doctype html>") and "compress" in out.split("--drop-rate 0.99")[1]
    assert run("analyze", pair.base, pair.finetuned, "--html", page).exit_code == 1
    assert run("analyze", pair.base, pair.finetuned, "--html", page, "--force", "--quiet").stdout == ""


def test_json_is_the_report(pair: Pair, run: Run) -> None:
    report = json.loads(run("analyze", pair.base, pair.finetuned, "--json").stdout)
    found = {tensor["name"]: tensor for tensor in report["tensors"]}
    small = found["a.weight"]  # too small for factors, so that `compress` looks for no directions either
    assert (small["elements"], small["kappa"], small["singular"]) == (2000, None, []) and small["relative"] > 0
    assert report["total"]["name"] == "all" and report["dare"][0]["drop_rate"] == 0.5 and report["recommendation"]


def test_options_become_arguments(pair: Pair, run: Run, stand_in: StandIn) -> None:
    recorder = stand_in("analyze", RuntimeError("stop"))
    words = ["--map", "x(.*)=y\\1", "--base-pack", pair.pack, "--weights", "single", "--allow-unrelated", "--workers", 3]
    run("analyze", pair.base, pair.finetuned, *words)
    assert recorder.args == (pair.base, pair.finetuned)
    wanted = {"name_map": [("x(.*)", "y\\1")], "base_packs": (pair.pack,), "weight_files": "single", "allow_unrelated": True, "workers": 3}
    assert recorder.kwargs.items() >= {**wanted, "html": None, "force": False}.items()
    assert "not of the form REGEX=REPLACEMENT" in run("analyze", pair.base, pair.finetuned, "--map", "x").stderr
