"""`deltapack inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builders import Tensor, random_tensor, write_file
from support.commands import Pair, Run

import deltapack
from deltapack import Budget, Recipe
from deltapack.cli.commands.inspect import _settings
from deltapack.packs.inspecting import inspect_pack


def test_text(run: Run, pair: Pair) -> None:
    result = run("inspect", pair.pack)
    assert (result.exit_code, result.stderr) == (0, "")
    summary = inspect_pack(pair.pack)
    assert summary.id in result.stdout
    assert "1 delta, 1 removed, 1 stored, 1 unchanged" in result.stdout
    assert "drop_rate 0.5" in result.stdout
    assert "config.json" in result.stdout
    assert "a.weight" not in result.stdout
    assert run("inspect", pair.pack, "--quiet").stdout == ""


def test_tensors(run: Run, pair: Pair) -> None:
    lines = run("inspect", pair.pack, "--tensors").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[-4:]}
    assert list(rows) == ["a.weight", "head", "old", "same"]
    assert rows["a.weight"][:7] == ["weight", "delta", "f32", "[40,", "50]", "seeded", "int8"]
    assert rows["head"][:3] == ["vector", "stored", "f32"] and rows["same"][:2] == ["integer", "unchanged"]
    assert rows["old"] == ["removed", "0"]


def test_what_a_merged_pack_keeps(run: Run, pair: Pair, tmp_path: Path) -> None:
    """Not 300 %: a term for each of the six packs, each of which keeps a half."""
    deltapack.merge(pair.base, [pair.pack] * 6, tmp_path / "x.dpk", weights=[0.1])
    one, merged = inspect_pack(pair.pack), inspect_pack(tmp_path / "x.dpk")
    assert (merged.nnz, merged.term_elements, merged.density) == (6 * one.nnz, 6 * 2000, one.density)
    assert one.term_elements == one.delta_elements == merged.delta_elements == 2000
    text = run("inspect", tmp_path / "x.dpk").stdout
    share = f"{100 * one.density:.4g} %"
    assert f"{merged.nnz:,} of the 12,000 elements of several terms for 2,000 weights of changed tensors ({share})" in text
    assert f"{one.nnz:,} of 2,000 weights of changed tensors ({share})" in run("inspect", pair.pack).stdout


@pytest.mark.parametrize(("own", "codecs"), [(1.0, ("factors", "ternary")), (0.0, ("factors",))])
def test_what_a_budget_keeps(own: float, codecs: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    """A term of low rank is no element that was kept."""
    base, noise = random_tensor(1, (256, 192)), random_tensor(2, (256, 192)).f64
    write_file(tmp_path / "base.safetensors", {"w": base})
    tuned = base.f64 + 0.01 * (own * noise + 5 * noise[:, :1] * noise[:1] / noise.std())
    write_file(tmp_path / "tuned.safetensors", {"w": Tensor("f32", tuned.astype("<f4"))})
    pack = tmp_path / "x.dpk"
    deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", pack, recipe=Recipe(budget=Budget(bits=0.5)))
    (row,) = inspect_pack(pack).tensors
    text, kept = run("inspect", pack, "--tensors").stdout, row.nnz - 256 * 192
    assert row.value_codecs == codecs
    if codecs == ("factors",):
        assert kept == 0 and "kept             the directions that factors have of 49,152 weights of changed tensors\n" in text
        return
    share = f"{100 * kept / (256 * 192):.4g} %"
    assert f"kept             {kept:,} of 49,152 weights of changed tensors ({share}), beside factors of low rank\n" in text
    assert f"  {kept:,}  " in text.splitlines()[-1]


def test_how_a_pack_was_tuned_is_no_python() -> None:
    assert list(_settings({"tuned": [{"by": "kl", "factors": {"all": "0.8"}}]})) == ["tuned: by=kl factors=all:0.8"]


def test_json(run: Run, pair: Pair) -> None:
    document = json.loads(run("inspect", pair.pack, "--json").stdout)
    assert document == json.loads(json.dumps(inspect_pack(pair.pack).to_json(tensors=False)))
    assert "tensors" not in document
    tensors = json.loads(run("inspect", pair.pack, "--json", "--tensors").stdout)["tensors"]
    assert [tensor["name"] for tensor in tensors] == ["a.weight", "head", "old", "same"]


def test_not_a_pack(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.dpk"
    for content in (b"", b"hello\n", b"x" * 1000):
        path.write_bytes(content)
        result = run("inspect", path)
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr.startswith(f"Error: {path}: ") and result.stderr.count("\n") == 1


def test_any_recipe_can_be_spelled() -> None:
    recipe = {"method": "linear", "packs": [{"id": "a", "weight": "0.5"}, 3], "odd": {"x": [1]}, "none": None}
    assert list(_settings(recipe)) == [
        "method linear",
        "packs: id=a weight=0.5",
        "packs: 3",
        "odd {'x': [1]}",
        "none None",
    ]
