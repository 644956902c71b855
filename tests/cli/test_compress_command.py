"""`deltapack compress`: options become a recipe, the report becomes text."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.commands import Pair, Run, StandIn

from deltapack import Budget, Override, Recipe
from deltapack.packing.budget import USUAL_QUALITY
from deltapack.packing.recipe import INDEX_CHOICES, USUAL_RATE, VALUE_CHOICES
from deltapack.reports import CompressReport
from deltapack.sparsify.table import SPARSIFIERS


def test_defaults_are_those_of_the_library(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    use_case = stand_in("compress", pair.report)
    assert run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk").exit_code == 0
    assert use_case.args == (pair.base, pair.finetuned, tmp_path / "x.dpk")
    assert use_case.kwargs == {
        "recipe": Recipe(),
        "name_map": [],
        "include_code": False,
        "keep_base": None,
        "allow_unrelated": False,
        "weight_files": None,
        "max_side_file": None,
        "max_part_size": None,
        "leave_out": (),
        "follow_links": False,
        "base_packs": (),
        "workers": None,
        "force": False,
        "engine": "local",
        "address": None,
        "progress": None,
    }


def test_options_reach_the_library(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    use_case = stand_in("compress", pair.report)
    options = shlex.split(
        "--drop-rate 0.8 --values int4 --index gaps --rescale 3 --seed 7 --include i --exclude e --fidelity 0.1 "
        "--non-finite store --include-code --max-side-file 200MB --max-part-size 5GB --follow-links "
        "--leave-out '*.md' --leave-out 'logs/*' --workers 2 --force --set a:b:drop-rate=0.5,values=bf16 --set c:index=bitmap"
    )
    maps = ["--map", r"(?=x)(.*)=y.\1", "--map", "p=", "--keep-base", "k", "--allow-unrelated", *(["--base-pack", str(pair.pack)] * 2)]
    result = run("compress", pair.base, pair.finetuned, "--out", tmp_path / "x.dpk", *options, *maps)
    assert result.exit_code == 0, result.stderr
    assert use_case.kwargs == {
        "recipe": Recipe(
            drop_rate=0.8,
            values="int4",
            index="gaps",
            rescale=3.0,
            seed=7,
            include="i",
            exclude="e",
            overrides=(Override("a:b", drop_rate=0.5, values="bf16"), Override("c", index="bitmap")),
            fidelity=0.1,
            non_finite="store",
        ),
        "name_map": [("(?=x)(.*)", r"y.\1"), ("p", "")],
        "include_code": True,
        "keep_base": "k",
        "allow_unrelated": True,
        "weight_files": None,
        "max_side_file": "200MB",
        "max_part_size": "5GB",
        "leave_out": ("*.md", "logs/*"),
        "follow_links": True,
        "base_packs": (pair.pack, pair.pack),
        "workers": 2,
        "force": True,
        "engine": "local",
        "address": None,
        "progress": None,
    }


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        (["--target-size", "50MB"], Budget(size="50MB")),
        (["--target-ratio", "100"], Budget(ratio=100.0)),
        (["--target-bits", "0.25"], Budget(bits=0.25)),
        (["--quality", "small"], Budget(quality="small")),
    ],
)
def test_budgets_reach_the_library(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path, options: list[str], budget: Budget) -> None:
    use_case = stand_in("compress", pair.report)
    result = run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", *options, "--exclude", "e", "--set", "a:drop-rate=0.5")
    assert result.exit_code == 0, result.stderr
    assert use_case.kwargs["recipe"] == Recipe(budget=budget, exclude="e", overrides=(Override("a", drop_rate=0.5),))


def test_an_option_of_dare_means_dare(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    use_case = stand_in("compress", pair.report)
    assert run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", "--values", "auto").exit_code == 0
    assert use_case.kwargs["recipe"] == Recipe(values="auto")


@pytest.mark.parametrize("sparsify", SPARSIFIERS)
def test_sparsifiers_and_their_options_reach_the_library(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path, sparsify: str) -> None:
    use_case = stand_in("compress", pair.report)
    given: dict[str, Any] = {option.name: 0.0625 + number / 1024 for number, option in enumerate(SPARSIFIERS[sparsify].options)}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", "--sparsify", sparsify, *options)
    assert result.exit_code == 0, result.stderr
    assert use_case.kwargs["recipe"] == Recipe(sparsify=sparsify, **given)


def test_help_tells_of_every_sparsifier_and_codec(run: Run) -> None:
    text = " ".join(run("compress", "--help").stdout.split())
    for row in SPARSIFIERS.values():
        assert f"{row.name} {row.text}" in text
        for option in row.options:
            assert f"For {row.name}: {option.text.rstrip('.')}" in text
    assert "|".join(VALUE_CHOICES) in text and "|".join(INDEX_CHOICES) in text and "|".join(SPARSIFIERS) in text


@pytest.mark.parametrize(
    "options",
    [
        ["--drop-rate", "1"],
        ["--drop-rate", "nan"],
        ["--values", "int0"],
        ["--index", "coo"],
        ["--workers", "0"],
        ["--map", "nothing"],
        ["--map", "=x"],
        ["--set", "x:drop-rate"],
        ["--set", "x:values=int0"],
        ["--include", "("],
        ["--non-finite", "ignore"],
        ["--target-size", "0"],
        ["--target-size", "50 apples"],
        ["--target-size", "9" * 5000],
        ["--target-ratio", "0"],
        ["--target-ratio", "nan"],
        ["--target-bits", "-1"],
        ["--target-bits", "inf"],
        ["--quality", "best"],
        ["--target-bits", "1", "--quality", "high"],
        ["--target-size", "1MB", "--target-ratio", "100"],
        ["--target-bits", "1", "--drop-rate", "0.9"],
        ["--quality", "small", "--values", "auto"],
        ["--quality", "small", "--gamma", "0.1"],
        ["--quality", "small", "--exact"],
    ],
)
def test_wrong_options_exit_2(options: list[str], run: Run, pair: Pair, tmp_path: Path) -> None:
    result = run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", *options)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target-size", "50 apples"], "Invalid value for '--target-size': not a size"),
        (["--target-ratio", "0"], "Invalid value for '--target-ratio': the ratio that a pack should have is out of range"),
        (["--target-bits", "nan"], "Invalid value for '--target-bits': the bits that a pack should have are out of range"),
        (["--drop-rate", "90"], "found 90.0. To drop 90 %, write 0.9."),
    ],
)
def test_a_wrong_number_is_told_by_its_option(options: list[str], words: str, run: Run, pair: Pair, tmp_path: Path) -> None:
    result = run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", *options)
    assert result.exit_code == 2 and words in result.stderr


def test_the_help_says_what_the_default_is(run: Run) -> None:
    words = " ".join(run("compress", "--help").stdout.split())
    assert f"[default: ({USUAL_QUALITY})]" in words and f"{USUAL_RATE} where another option says how to drop" in words


def test_report_as_text(run: Run, pair: Pair, tmp_path: Path) -> None:
    result = run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", "--drop-rate", "0.5", "--values", "int8")
    assert (result.exit_code, result.stderr) == (0, "")
    report = pair.report
    assert f"({report.pack_bytes:,} bytes), {report.ratio:.1f} times smaller" in result.stdout
    assert f"{report.delta_bits_per_weight:.4f} over 2,000 weights" in result.stdout
    assert "1 delta, 1 removed, 1 stored, 1 unchanged" in result.stdout
    assert f"max |delta|      {report.max_abs_delta:.3g}\n" in result.stdout
    for part, name in (
        ("codes", "values"),
        ("scales", "scales"),
        ("stored", "stored tensors"),
        ("files", "side files"),
    ):
        assert f"{report.split[part]:,}" in next(line for line in result.stdout.splitlines() if line.startswith(f"  {name} "))


def test_report_as_json(run: Run, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "x.dpk"
    result = run("compress", pair.base, pair.finetuned, "-o", out, "--drop-rate", "0.5", "--values", "int8", "--json")
    document = json.loads(result.stdout)
    expected = pair.report.to_json() | {"pack": str(out), "ratio": pair.report.ratio}
    assert document == json.loads(json.dumps(expected))
    assert out.read_bytes() == pair.pack.read_bytes()


def test_quiet_leaves_warnings(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    split = {"index": 1, "codes": 1}
    report = CompressReport(
        Path("x.dpk"), 10, 100, 5, 1.0, split, {"delta": 1}, {"weight": 1}, 0.1, [("w", 0.1)], ["too large"], ["a note"]
    )
    stand_in("compress", report)
    call = ["compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk"]
    loud, quiet, as_json = run(*call), run(*call, "--quiet"), run(*call, "--json")
    assert "Note: a note\n" in loud.stdout and "\n  w " in loud.stdout
    assert (loud.stderr, quiet.stderr) == ("Warning: too large\n",) * 2
    assert quiet.stdout == ""
    assert (json.loads(as_json.stdout)["warnings"], as_json.stderr) == (["too large"], "")
