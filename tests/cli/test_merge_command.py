"""`deltapack merge`: settings that would do nothing are refused by name, and what it prints is so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["-o", "out"], "--out"),
        (["--dry-run"], "--dry-run"),
        (["--report"], "--report"),
        (["--assets", "base"], "--assets"),
        (["--dtype", "bf16"], "--dtype"),
        (["--max-shard-size", "5GB"], "--max-shard-size"),
        (["--no-verify"], "--no-verify"),
        (["--force"], "--force"),
        (["--device", "cpu"], "--device"),
        (["--backend", "auto"], "--backend"),
        (["--dry-run", "-o", "out", "--report"], "--out, --dry-run, --report"),
    ],
)
def test_an_explanation_has_no_use_for_options_of_output(typed: list[str], named: str, run: Run, pair: Any) -> None:
    result = run("merge", pair.base, pair.pack, "--explain", "auto", *typed)
    assert result.exit_code == 2 and f"{named} would have no effect" in result.stderr


def test_an_explanation_alone(run: Run, pair: Any) -> None:
    loud, quiet, as_json = (run("merge", pair.base, pair.pack, "--explain", "auto", *more) for more in ([], ["-q"], ["--json"]))
    assert "weight * delta" in loud.stdout and (quiet.exit_code, quiet.stdout) == (0, "")
    (row,) = json.loads(as_json.stdout)["rows"]
    assert type(row["density"]) is float and 0 < row["density"] < 1


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--packs", "FOLDER"], "--packs says where the packs of a recipe are; there is no --recipe."),
        (["--lambda", "3", "--param", "lambda=2"], "The parameter lambda has one value and is given twice."),
        (["--param", "normalize=1", "--no-normalize"], "The parameter normalize has one value and is given twice."),
        (["--method", "sce", "--param", "select_topk=0.5", "--param", "select-topk=0.5"], "The parameter select_topk has one value"),
        (["--method", "ties", "--param", "epsilon=1"], "ties has no parameter epsilon"),
        (["--density", "0.5"], "linear has no parameter density"),
        (["--weight", "nothing.*:*=0.5"], "matches no tensor of the base"),
        (["--weight", "0.5", "--weight", "*=1"], "--weight 0.5 has no effect"),
        (["--max-shard-size", "5GB", "-o", "x.safetensors"], "max_shard_size is for folders"),
        (["--max-shard-size", "5GB", "-o", "x.safetensors", "--dry-run"], "max_shard_size is for folders"),
    ],
)
def test_settings_that_do_nothing(typed: list[str], message: str, run: Run, pair: Any, tmp_path: Path) -> None:
    out = [] if "-o" in typed else ["-o", tmp_path / "out"]
    result = run("merge", pair.base, pair.pack, *out, *[str(tmp_path) if word == "FOLDER" else word for word in typed])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_weight_that_no_pack_can_state(more: list[str], run: Run, pair: Any, tmp_path: Path) -> None:
    result = run("merge", pair.base, pair.pack, "-o", tmp_path / "x.dpk", "--weight", "2.9e38", *more)
    assert result.exit_code == 2 and "not a finite f32, and a pack states only such" in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_the_table_of_weights(run: Run, pair: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy.dpk"
    copy.write_bytes(pair.pack.read_bytes())
    call = ["merge", pair.base, pair.pack, copy, "-o", tmp_path / "out", "--dry-run"]
    rows = [line.split() for line in run(*call, "--weight", "copy=0.25").stdout.splitlines()]
    assert [str(pair.pack), "1"] in rows and [str(copy), "0.25"] in rows
    assert "by tensor" in run(*call, "--weight", "a.*:copy=0.25").stdout
    average = run(*call, "--method", "average").stdout
    assert "the method has no weights" in average and "by tensor" not in average
    merged = run(*[word for word in call if word != "--dry-run"], "--method", "average")
    assert merged.exit_code == 0 and "the method has no weights" in merged.stdout
