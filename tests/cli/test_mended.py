"""What people ran into: an option given twice, an output over an input, a card's recipe used as the card says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import deltapack

Run = Callable[..., Result]


@pytest.mark.parametrize(
    "typed", [["--exclude", "a", "--exclude", "b"], ["--values", "int4", "--values", "int8"], ["--seed=1", "--seed=2"]]
)
def test_an_option_of_one_value_given_twice(typed: list[str], run: Run, pair: Any, tmp_path: Path) -> None:
    result = run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", *typed)
    assert result.exit_code == 2
    assert f"Option '{typed[0].partition('=')[0]}' takes one value and is given twice." in result.stderr
    assert not list(tmp_path.iterdir())


def test_options_of_several_values_and_flags_may_come_again(run: Run, pair: Any, tmp_path: Path) -> None:
    typed = ["--set", "a.*:drop-rate=0.5", "--set", ".*weight:drop-rate=0.1", "--force", "--force", "-q"]
    assert run("compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk", *typed).exit_code == 0


def test_a_pack_is_not_written_over_a_file_of_an_input(run: Run, pair: Any, tmp_path: Path) -> None:
    for side in ("base", "finetuned"):
        shutil.copytree(getattr(pair, side), tmp_path / side)
    before = (tmp_path / "finetuned" / "config.json").read_bytes()
    call = ["compress", tmp_path / "base", tmp_path / "finetuned", "--force", "-o"]
    refused = run(*call, tmp_path / "finetuned" / "config.json")
    assert refused.exit_code == 1 and "the output is a file of an input" in refused.stderr
    assert (tmp_path / "finetuned" / "config.json").read_bytes() == before
    own = tmp_path / "finetuned" / "x.dpk"
    assert [run(*call, own).exit_code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_the_recipe_of_a_card_used_as_the_card_says(dtype: str | None, run: Run, pair: Any, tmp_path: Path) -> None:
    """`--packs DIR` says where the packs are, also for names of files; a namesake beside the recipe is not taken instead."""
    deltapack.merge(pair.base, [pair.pack], tmp_path / "out", weights=[0.5], dtype=dtype)
    (tmp_path / "card").mkdir()
    recipe = tmp_path / "card" / "again.yml"
    recipe.write_text((tmp_path / "out" / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    (tmp_path / "card" / pair.pack.name).write_bytes(b"a namesake that is no pack")
    result = run("merge", pair.base, "--recipe", recipe, "--packs", pair.pack.parent, "-o", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
