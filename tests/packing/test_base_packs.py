"""Packs that follow packs: made against what a chain restores, without writing that."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import edited, leftovers, small_model, tuned_model
from support.chains import State, Steps, make_steps
from support.recipes import DARE

import deltapack
from deltapack.errors import BaseMismatchError, OutputError
from deltapack.format.reader import PackReader

MODEL = small_model()
LAST = State(tuned_model(MODEL, 40) | {"new": tuned_model(MODEL, 50)["layer.bias"]}, files={"tokenizer.json": "{}\n" * 60})


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("steps")
    states = [
        State(tuned_model(MODEL, 10 * number) if number else MODEL, files={"tokenizer.json": "{}\n" * (50 + number)}) for number in range(3)
    ]
    steps = make_steps(folder, states)
    LAST.write(folder / "last")
    return steps


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("recipe", [deltapack.Recipe(), DARE, deltapack.Recipe(sparsify="magnitude")], ids=["default", "dare", "magnitude"])
def test_the_pack_is_that_of_the_written_base(steps: Steps, count: int, recipe: deltapack.Recipe, tmp_path: Path) -> None:
    tuned = steps.base.parent / "last"
    one = deltapack.compress(steps.base, tuned, tmp_path / "a.dpk", recipe=recipe, base_packs=steps.packs[:count], workers=2)
    two = deltapack.compress(steps.folders[count - 1], tuned, tmp_path / "b.dpk", recipe=recipe)
    assert (tmp_path / "a.dpk").read_bytes() == (tmp_path / "b.dpk").read_bytes()
    assert one.to_json() | {"pack": ""} == two.to_json() | {"pack": ""}
    preview = deltapack.preview_compress(steps.base, tuned, recipe=recipe, base_packs=[str(pack) for pack in steps.packs[:count]])
    assert preview == deltapack.preview_compress(steps.folders[count - 1], tuned, recipe=recipe)
    with PackReader(tmp_path / "a.dpk") as pack, PackReader(steps.packs[count - 1]) as before:
        assert pack.index.base_fingerprint == before.index.result_fingerprint


def test_packs_in_any_order(steps: Steps, tmp_path: Path) -> None:
    tuned = steps.base.parent / "last"
    for name, packs in (("a", steps.packs), ("b", steps.packs[::-1])):
        deltapack.compress(steps.base, tuned, tmp_path / f"{name}.dpk", base_packs=packs)
    assert (tmp_path / "a.dpk").read_bytes() == (tmp_path / "b.dpk").read_bytes()


@pytest.mark.parametrize("name", ["layer.weight", "positions"])
def test_another_base_is_refused(name: str, steps: Steps, tmp_path: Path) -> None:
    """Found in a tensor that a pack changes, and in one that none does."""
    files = {"tokenizer.json": "{}\n" * 50}
    other = State(MODEL | {name: edited(MODEL[name], 3, 7)}, files=files).write(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match=f"other: tensor '{name}'"):
        deltapack.compress(other, steps.base.parent / "last", tmp_path / "x.dpk", base_packs=steps.packs)
    assert not leftovers(tmp_path) and not (tmp_path / "x.dpk").exists()


def test_a_gap_is_refused(steps: Steps, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError, match=r"tensor .layer.weight.: the base tensor has other content"):
        deltapack.compress(steps.base, steps.base.parent / "last", tmp_path / "x.dpk", base_packs=steps.packs[1:])


def test_packs_are_protected(steps: Steps) -> None:
    before = steps.packs[0].read_bytes()
    with pytest.raises(OutputError, match="input"):
        deltapack.compress(steps.base, steps.base.parent / "last", steps.packs[0], base_packs=steps.packs, force=True)
    assert steps.packs[0].read_bytes() == before


def test_a_step_that_changes_nothing(steps: Steps, tmp_path: Path) -> None:
    """As the first steps of a warm-up do: such packs are links, too."""
    deltapack.compress(steps.base, steps.folders[1], tmp_path / "idle.dpk", base_packs=steps.packs)
    chain = [*steps.packs, tmp_path / "idle.dpk"]
    report = deltapack.compress(steps.base, steps.base.parent / "last", tmp_path / "next.dpk", base_packs=chain)
    assert report.pack_bytes
    deltapack.apply(steps.base, [tmp_path / "next.dpk", *chain], tmp_path / "out")
