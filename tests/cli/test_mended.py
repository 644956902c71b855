"""What people ran into: an option given twice, an output over an input, a card's recipe used as the card says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors.numpy import load_file

import deltapack
from deltapack.errors import NotAPackError, RecipeError

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
    assert refused.exit_code == 2 and "the name of a pack ends in .dpk" in refused.stderr
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


@pytest.mark.parametrize("command", ["apply", "merge", "dry"])
def test_force_keeps_a_file_that_someone_else_made(command: str, run: Run, pair: Any, tmp_path: Path) -> None:
    mine = tmp_path / "my.safetensors"
    shutil.copy(pair.base / "model.safetensors", mine)
    before, typed = mine.read_bytes(), [pair.base, pair.pack, "-o", mine, "--force", "-q"]
    call = ["merge", *typed, "--dry-run"] if command == "dry" else [command, *typed]
    refused = run(*call)  # the plan of a merge is shown, with what it would stop at
    assert refused.exit_code == (command != "dry") and "my.safetensors: the output is a file that deltapack did not write" in refused.stderr
    assert "Move or remove it yourself" in refused.stderr and mine.read_bytes() == before
    mine.unlink()
    assert [run("apply", *typed).exit_code, run(*call).exit_code] == [0, 0]


def test_a_config_left_out_is_warned_of(run: Run, pair: Any, tmp_path: Path) -> None:
    base, tuned = (shutil.copytree(getattr(pair, side), tmp_path / side) for side in ("base", "finetuned"))
    for name in ("1_Pooling/config.json", "notes.md", "tokenizer.json"):
        (tuned / name).parent.mkdir(exist_ok=True)
        (tuned / name).write_text("{}")
    call = ["compress", base, tuned, "-o", tmp_path / "x.dpk", "--force", "--leave-out"]
    assert "may not load" not in run(*call, "notes.md").stderr
    said = run(*call, "config.json")
    assert said.exit_code == 0 and "config.json left out as asked for: what is restored lacks it and may not load" in said.stderr
    assert run("apply", base, tmp_path / "x.dpk", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file() and not (tmp_path / "out" / "config.json").exists()
    said = run(*call, "**/*.json", "--dry-run")
    assert "1_Pooling/config.json, config.json, tokenizer.json left out as asked for: what is restored lacks them" in said.stderr


def test_a_choice_of_weights_that_decides_nothing_is_refused(run: Run, pair: Any, tmp_path: Path) -> None:
    out, file = tmp_path / "out", pair.base / "model.safetensors"
    for choice in ("single", "index"):
        for call in (
            ["compress", pair.base, pair.finetuned, "-o", tmp_path / "x.dpk"],
            ["apply", pair.base, pair.pack, "-o", out],
            ["apply", file, pair.pack, "-o", out],
            ["merge", pair.base, pair.pack, "-o", out],
            ["verify", pair.pack, "--base", pair.base],
        ):
            refused = run(*call, "--weights", choice)
            assert refused.exit_code == 2 and "there is nothing to choose" in refused.stderr, (call, refused.stderr)
    assert not list(tmp_path.iterdir())
    tuned = shutil.copytree(pair.finetuned, tmp_path / "tuned")  # one of two inputs is enough
    shutil.copy(tuned / "model.safetensors", tuned / "model-00001-of-00001.safetensors")
    names = {name: "model-00001-of-00001.safetensors" for name in ("a.weight", "same", "head")}
    (tuned / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert run("compress", pair.base, tuned, "-o", tmp_path / "x.dpk", "--weights", "index").exit_code == 0


def test_rescale_0_is_refused(run: Run, pair: Any, tmp_path: Path) -> None:
    refused = run("apply", pair.base, pair.pack, "-o", tmp_path / "out", "--rescale", "0")
    assert refused.exit_code == 2 and "rescale is out of range: expected above 0" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["py.safetensors", "q", "q.txt", "q.DPK"])
def test_a_pack_is_called_dpk_in_python_too(name: str, run: Run, pair: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\.dpk"):
        deltapack.compress(pair.base, pair.finetuned, tmp_path / name)
    assert run("compress", pair.base, pair.finetuned, "-o", tmp_path / name).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_result_of_one_file_needs_no_files_of_the_base(run: Run, pair: Any, tmp_path: Path) -> None:
    tuned = shutil.copytree(pair.finetuned, tmp_path / "tuned")
    shutil.copy(pair.base / "config.json", tuned)  # equal, so the pack leaves it to the base
    deltapack.compress(pair.base, tuned, tmp_path / "x.dpk")
    bare = shutil.copy(pair.base / "model.safetensors", tmp_path / "bare.safetensors")
    for command in ("apply", "merge"):
        done = run(command, bare, tmp_path / "x.dpk", "-o", tmp_path / f"{command}.safetensors")
        assert done.exit_code == 0 and "config.json" in done.stdout + done.stderr, done.stderr
        refused = run(command, bare, tmp_path / "x.dpk", "-o", tmp_path / "out")
        assert refused.exit_code == 4 and "the base has no side file 'config.json'" in refused.stderr
        assert "Name the base's folder, with config.json in it" in refused.stderr and not (tmp_path / "out").exists()
    deltapack.apply(pair.base, tmp_path / "x.dpk", tmp_path / "whole.safetensors")
    assert (tmp_path / "apply.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_pack_on_the_hub_is_told_from_a_path(run: Run) -> None:
    for command in ("inspect", "verify"):
        refused = run(command, "org/name")
        assert refused.exit_code == 2 and "hf download org/name --include '*.dpk' --local-dir name" in " ".join(refused.stderr.split())
        assert "hf download" not in run(command, "packs/math.dpk").stderr
    with pytest.raises(NotAPackError, match="hf download org/name") as caught:
        deltapack.open_pack("org/name")
    assert caught.value.exit_code == 5
    with pytest.raises(NotAPackError) as caught:
        deltapack.open_pack("org/name.dpk")
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("name", "on_hub"), [("README.md", False), ("docs/x.json", False), ("x.safetensors", False), ("Qwen/Qwen2.5", True)]
)
def test_the_name_of_a_file_is_no_model_of_the_hub(
    name: str, on_hub: bool, run: Run, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("apply", name, pair.pack, "-o", tmp_path / "out")
    assert refused.exit_code == 2 and (f"hf download {name}" in " ".join(refused.stderr.split())) == on_hub


def test_notes_say_which_side_they_are_about(pair: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for side in ("base", "finetuned"):
        weights = {name: torch.from_numpy(array) for name, array in load_file(getattr(pair, side) / "model.safetensors").items()}
        (tmp_path / side).mkdir()
        torch.save(weights, tmp_path / side / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    notes = deltapack.compress(tmp_path / "base", tmp_path / "finetuned", tmp_path / "x.dpk").notes
    found = [note.partition(" cannot be read in place")[0] for note in notes if "in place" in note]
    assert found == ["base: pytorch_model.bin", "fine-tune: pytorch_model.bin"]


def test_demo_refuses_what_it_cannot_fill_before_it_trains(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused = run("demo", "-o", tmp_path / "mine", "-q")
    assert refused.exit_code == 1 and "Choose another: no demo is in it." in refused.stderr and "--force" not in refused.stderr
    refused = run("demo", "-o", tmp_path / "mine" / "notes.txt", "-q")
    assert refused.exit_code == 1 and "the output exists and is no folder" in refused.stderr
    refused = run("demo", "-o", tmp_path / "zz.safetensors", "-q")
    assert refused.exit_code == 2 and "the output cannot be a .safetensors file" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
