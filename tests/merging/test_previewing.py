"""A dry run tells what a merge would do, and refuses what it would refuse, without reading a tensor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.builders import Model, random_tensor, small_model, tuned_model, write_file, write_folder
from support.fixtures import PackOf
from support.recipes import DARE

import deltapack
from deltapack.checkpoint import Checkpoint
from deltapack.errors import BaseMismatchError, DeltapackError, LimitError, MergeConflictError, OutputError, RecipeError
from deltapack.merging.recipe import MergeRecipe, constant


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base folder, a pack that grows the vocabulary, and one that does not."""
    base = small_model()
    write_folder(tmp_path / "base", base, {"tokenizer.json": "0"})
    more = tuned_model(base, 2) | {"embed.weight": random_tensor(5, (80, 32)), "head": random_tensor(6, (4, 5))}
    for name, tuned in (("grown", more), ("plain", tuned_model(base, 3))):
        write_folder(tmp_path / name, tuned, {"tokenizer.json": name})
        deltapack.compress(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.dpk", recipe=DARE)
    return tmp_path / "base", [tmp_path / "grown.dpk", tmp_path / "plain.dpk"]


def test_what_it_tells(folders: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, packs = folders

    def read(*arguments: Any) -> None:
        raise AssertionError("a tensor was read")

    recipe = MergeRecipe("ties", (constant(0.5), constant(0.7)))
    with monkeypatch.context() as patch:
        for name in ("read", "read_into", "file_range"):
            patch.setattr(Checkpoint, name, read)
        report = deltapack.preview_merge(base, packs, tmp_path / "out", recipe=recipe, workers=2)
        with pytest.raises(AssertionError, match="a tensor was read"):
            deltapack.merge(base, packs, tmp_path / "other", recipe=recipe, workers=2)
    assert report.tensors == {"from one pack": 1, "from the base": 1, "merged": 3}
    assert report.dtypes == {"f32": 4, "i64": 1}
    assert report.grown == [("embed.weight", 70, 80)]
    assert report.assets == str(packs[0])
    assert report.weights == [(str(packs[0]), 0.5), (str(packs[1]), 0.7)]
    assert any("normalize" in warning for warning in report.warnings)
    # A thread has at least base and result of the largest tensor, and some times as much for two packs.
    largest = 257 * 259 * 4
    assert 2 * 2 * largest < report.memory < 2 * 16 * largest
    assert report.memory == 2 * deltapack.preview_merge(base, packs, tmp_path / "out", recipe=recipe, workers=1).memory
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_the_merge(folders: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, packs = folders
    expected = deltapack.preview_merge(base, packs, tmp_path / "out").bytes
    deltapack.merge(base, packs, tmp_path / "out")
    written = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert expected <= written <= expected + 8192  # headers, the model card
    for method in ("linear", "ties"):
        recipe = MergeRecipe(method)
        most = deltapack.preview_merge(base, packs, tmp_path / "out.dpk", recipe=recipe).bytes
        deltapack.merge(base, packs, tmp_path / "out.dpk", recipe=recipe)
        assert (tmp_path / "out.dpk").stat().st_size <= most + 8192
        (tmp_path / "out.dpk").unlink()


def test_it_foresees_what_becomes_of_terms(pack_of: PackOf, tmp_path: Path) -> None:
    """A tensor that no pack changes stays the base's, and what turns out to be a sum is as large as the packs' own streams."""
    base = {"x": random_tensor(1, (300, 400)), "y": random_tensor(2, (900,))}
    packs = [pack_of(base, tuned_model(base, number) | {"y": base["y"]}, f"{number}", drop_rate=0.5) for number in (1, 2)]
    own = sum(path.stat().st_size for path in packs)
    sizes = {}
    for method in ("linear", "ties", "model_stock"):
        out, recipe = tmp_path / f"{method}.dpk", MergeRecipe(method)
        report = deltapack.preview_merge(tmp_path / "base.safetensors", packs, out, recipe=recipe)
        assert report.tensors == {"from the base": 1, "merged": 1}
        deltapack.merge(tmp_path / "base.safetensors", packs, out, recipe=recipe)
        sizes[method] = report.bytes
        assert out.stat().st_size <= report.bytes + 8192
    assert sizes["model_stock"] == sizes["linear"] <= own < sizes["ties"]


def test_what_it_refuses(pack_of: PackOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_model()
    heads: list[Model] = [tuned_model(base, n) | {"head": random_tensor(n, (3, 3))} for n in (1, 2)]
    packs = [pack_of(base, head, f"{number}") for number, head in enumerate(heads)]
    shutil.copytree(tmp_path, tmp_path / "inputs")
    one = packs[:1]
    merged, thin = tmp_path / "merged.dpk", MergeRecipe("dare_linear", densities=(constant(0.1),))
    deltapack.merge(tmp_path / "base.safetensors", one * 2, merged)
    other = write_file(tmp_path / "other.safetensors", {"x": random_tensor(1, (3,))})
    cases: list[tuple[dict[str, Any], type[DeltapackError], str]] = [
        ({"packs": packs}, MergeConflictError, "'head': packs disagree"),
        ({"packs": []}, RecipeError, "nothing to merge"),
        ({"out": tmp_path / "base.safetensors", "force": True}, OutputError, "the output is one of the inputs"),
        ({"out": one[0], "force": True}, OutputError, "the output is one of the inputs"),
        ({"out": tmp_path / "out.dpk", "dtype": "bf16"}, RecipeError, "dtype and max_shard_size are for checkpoints"),
        ({"out": tmp_path / "out.dpk", "device": "cpu"}, RecipeError, "device and backend are for checkpoints"),
        ({"out": tmp_path / "no" / "out"}, OutputError, "the folder of the output does not exist"),
        ({"dtype": "i8"}, RecipeError, "dtype is not a float type"),
        ({"packs": [merged], "recipe": thin}, RecipeError, "cannot be thinned out at random"),
        ({"packs": one * 65, "out": tmp_path / "out.dpk"}, LimitError, "expected at most 64 terms, found 65"),
        ({"recipe": MergeRecipe("model_stock")}, RecipeError, "model_stock needs more packs"),
        ({"recipe": MergeRecipe("ties", (constant(1), constant(1)))}, RecipeError, "the number of weights is wrong"),
        ({"base": other}, BaseMismatchError, "not the base that the pack was made from"),
    ]
    for options, error, match in cases:
        arguments: dict[str, Any] = {"base": tmp_path / "base.safetensors", "packs": one, "out": tmp_path / "out"} | options
        with pytest.raises(error, match=match):
            deltapack.preview_merge(**arguments)
        with pytest.raises(error, match=match):
            deltapack.merge(**arguments)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    for out in ("out", "out.safetensors"):
        with pytest.raises(OutputError, match="disk space"):
            deltapack.preview_merge(tmp_path / "base.safetensors", one, tmp_path / out)


def test_a_plan_is_shown_for_an_output_that_exists(pack_of: PackOf, tmp_path: Path) -> None:
    base = small_model()
    pack = pack_of(base, tuned_model(base))
    start = tmp_path / "base.safetensors"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    shutil.copy(pack, tmp_path / "taken.dpk")
    for name, force, words in [
        ("folder", False, "the output exists"),
        ("folder", True, "notes.txt"),
        ("taken.dpk", False, "the output exists"),
        ("taken.dpk", True, None),
    ]:
        warnings = deltapack.preview_merge(start, [pack], tmp_path / name, force=force).warnings
        found = [warning for warning in warnings if "would stop" in warning]
        assert (words is None and not found) or (words is not None and len(found) == 1 and words in found[0])
        if words is not None:
            with pytest.raises(OutputError, match=words):
                deltapack.merge(start, [pack], tmp_path / name, force=force)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
