"""`--exact`, whose value may be left out, and what people see of exact packs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from support.builders import edited, moved, random_tensor, read_file, whole, write_file

import deltapack
from deltapack.packs.inspecting import inspect_pack

Run = Callable[..., Result]
NAMES = ("embed.weight", "layer.weight", "ids")


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    base = {name: random_tensor(seed, (60, 40), "bf16") for seed, name in enumerate(NAMES[:2])} | {"ids": whole("i64", np.arange(500))}
    tuned = {name: moved(base[name], 3, 0.0005) for name in NAMES[:2]} | {"ids": edited(base["ids"], 4, 9)}
    return write_file(tmp_path / "base.safetensors", base), write_file(tmp_path / "tuned.safetensors", tuned)


@pytest.mark.parametrize(
    ("typed", "exact"),
    [
        ("--exact BASE FT", NAMES),
        ("BASE --exact FT", NAMES),
        ("BASE FT --exact", NAMES),
        ("--exact --quiet BASE FT", NAMES),
        ("--exact embed BASE FT --drop-rate 0.9", ("embed.weight", "ids")),
        ("BASE --exact embed FT --drop-rate 0.9", ("embed.weight", "ids")),
        ("BASE FT --exact embed --drop-rate 0.9", ("embed.weight", "ids")),
        ("--exact=embed BASE FT --drop-rate 0.9", ("embed.weight", "ids")),
        ("BASE FT --exact=embed|layer", NAMES),
        ("BASE FT --drop-rate 0.9", ("ids",)),
    ],
)
@pytest.mark.parametrize("out_first", [False, True])
def test_where_the_option_may_stand(run: Run, models: tuple[Path, Path], tmp_path: Path, typed: str, exact: Any, out_first: bool) -> None:
    words = [{"BASE": str(models[0]), "FT": str(models[1])}.get(word, word) for word in typed.split()]
    out = ["-o", str(tmp_path / "x.dpk")]
    result = run("compress", *(out + words if out_first else words + out))
    assert (result.exit_code, result.stderr) == (0, "")
    with deltapack.open_pack(tmp_path / "x.dpk") as pack:
        assert {name for name, entry in pack.items() if entry.kind == "exact"} == set(exact)
    assert (inspect_pack(tmp_path / "x.dpk").recipe == {"method": "exact"}) is (exact == NAMES and "=" not in typed)


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        (["--exact", "--drop-rate", "0.5"], "drop-rate does nothing where all is exact"),
        (["--exact", "--drop-rate", "0.9"], "--drop-rate does nothing where all is exact"),
        (["--exact", "--set", ".*:role=exact"], "--set does nothing where all is exact"),
        (["--exact", "--sparsify", "dare"], "--exact REGEX"),
        (["--exact", "--exact"], "given twice"),
        (["--exact=a", "--exact=b"], "given twice"),
        (["--exact", "no such tensor"], "matches no tensor"),
        (["--exact=("], "regular expression is wrong"),
        (["--exact="], "neither a bool nor a regular expression"),
        (["--exact", "embed", "more"], "unexpected extra argument"),
    ],
)
def test_wrong_uses_exit_2(run: Run, models: tuple[Path, Path], tmp_path: Path, typed: list[str], what: str) -> None:
    result = run("compress", *models, "-o", tmp_path / "x.dpk", *typed)
    assert result.exit_code == 2 and what in " ".join(result.stderr.split())
    assert not (tmp_path / "x.dpk").exists()


def test_a_missing_argument_is_missed(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    """The only word is the base then, and not an expression."""
    result = run("compress", "--exact", models[0], "-o", tmp_path / "x.dpk")
    assert result.exit_code == 2 and "Missing argument 'FINETUNED'" in result.stderr


def test_what_people_read(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    pack, out = tmp_path / "x.dpk", tmp_path / "out.safetensors"
    told = run("compress", *models, "-o", pack, "--exact").stdout
    shown, listed = (run("inspect", pack, *more).stdout for more in ([], ["--tensors"]))
    for text in (told, shown):
        lines = text.splitlines()
        assert "bits per weight" not in text and "max |delta|" not in text and " 0.0 %" not in text
        parts = [line.split("  ")[1] for line in lines[lines.index(next(line for line in lines if line.startswith("  part"))) + 1 :]]
        assert parts[0] == "exact tensors" and not {"values", "scales", "deltas", "stored tensors", "index (positions)"} & set(parts)
    summary = json.loads(run("inspect", pack, "--json", "--tensors").stdout)
    elements = 2 * 60 * 40 + 500
    bits = 8 * summary["split"]["exact"] / elements
    assert re.search(rf"^exact +{elements:,} elements of 3 tensors, {bits:.4f} bits per element$", shown, re.M)
    rows = {line.split()[0]: line for line in listed.splitlines() if line.startswith("  ")}
    sizes = {tensor["name"]: tensor["stored_bytes"] for tensor in summary["tensors"]}
    assert f"{8 * sizes['embed.weight'] / 2400:.3f}" in rows["embed.weight"].split()
    assert summary["split"]["terms"] == 0 and summary["delta_bits_per_weight"] == 0
    done = run("apply", models[0], pack, "-o", out)
    assert done.exit_code == 0 and "verified" in done.stdout
    assert read_file(out) == read_file(models[1])
    assert run("verify", pack, "--base", models[0]).exit_code == 0


def test_a_dry_run_foresees_it(run: Run, models: tuple[Path, Path]) -> None:
    told = run("compress", *models, "--exact", "--dry-run").stdout
    assert "tensors       3 exact\n" in told and "weight files  restored byte for byte: 1\n" in told and told.count(" exact ") >= 6
