"""Which pack follows which: chains, forks, gaps, circles, damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from support.builders import Model, moved, random_tensor, small_model, tuned_model
from support.chains import State, Steps, make_steps

import deltapack
from deltapack.errors import RecipeError

MODEL = small_model()


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Three packs in a row: two lossy ones and one that is exact, and that adds, changes and removes a tensor."""
    folder = tmp_path_factory.mktemp("steps")
    last: Model = tuned_model(MODEL, 20) | {"new": random_tensor(1, (3, 3))}
    del last["positions"], last["embed.weight"]
    steps = make_steps(folder, [State(MODEL), State(tuned_model(MODEL, 5)), State(tuned_model(MODEL, 9))])
    State(last).write(folder / "last")
    deltapack.compress(steps.folders[-1], folder / "last", folder / "0002.dpk", recipe=deltapack.Recipe(exact=True), allow_unrelated=True)
    return Steps(steps.base, [*steps.packs, folder / "0002.dpk"], steps.folders)


def test_a_chain(steps: Steps) -> None:
    found = deltapack.log_packs(steps.base.parent)
    assert [row.path for row in found.rows] == steps.packs
    assert [row.link for row in found.rows] == [1, 2, 3]
    assert [row.follows for row in found.rows] == ["", *map(str, steps.packs[:2])]
    assert [row.kind for row in found.rows] == ["lossy", "lossy", "exact"]
    assert [(row.changed, row.tensors) for row in found.rows] == [(3, 4), (3, 4), (3, 3)]
    sizes = [pack.stat().st_size for pack in steps.packs]
    assert [(row.bytes, row.total_bytes) for row in found.rows] == [(size, sum(sizes[: at + 1])) for at, size in enumerate(sizes)]
    assert {row.root for row in found.rows} == {found.rows[0].base}
    assert [row.base for row in found.rows[1:]] == [row.result for row in found.rows[:-1]]
    stamp = datetime.fromtimestamp(int(steps.packs[0].stat().st_mtime), timezone.utc)
    assert datetime.fromisoformat(found.rows[0].date) == stamp
    assert (found.damaged, found.notes) == ([], [])
    assert json.loads(json.dumps(found.to_json()))["packs"][1]["follows"] == str(steps.packs[0])


def test_the_order_given_does_not_count(steps: Steps) -> None:
    assert deltapack.log_packs([str(pack) for pack in reversed(steps.packs)]).rows == deltapack.log_packs(steps.packs).rows
    assert deltapack.log_packs([steps.base.parent, *steps.packs]).rows == deltapack.log_packs(steps.packs).rows


def test_a_gap(steps: Steps) -> None:
    found = deltapack.log_packs([steps.packs[0], steps.packs[2]])
    assert [(row.link, row.follows) for row in found.rows] == [(1, ""), (1, "")]
    assert len({row.root for row in found.rows}) == 2
    assert len(found.notes) == 2 and f"{found.rows[1].base[:16]}, which {steps.packs[2]} follows" in found.notes[1]


def test_forks_copies_and_packs_that_change_nothing(steps: Steps, tmp_path: Path) -> None:
    other = State(MODEL | {"layer.bias": moved(MODEL["layer.bias"], 3)}).write(tmp_path / "other")
    deltapack.compress(steps.folders[0], other, tmp_path / "other.dpk", allow_unrelated=True)
    deltapack.compress(steps.folders[0], steps.folders[0], tmp_path / "idle.dpk")
    shutil.copy(steps.packs[0], tmp_path / "copy.dpk")
    found = deltapack.log_packs([*steps.packs, tmp_path])
    names = [row.path.name for row in found.rows]
    assert names == ["0000.dpk", "0001.dpk", "0002.dpk", "idle.dpk", "other.dpk", "copy.dpk"]
    assert [row.forks for row in found.rows] == [0, 1, 1, 1, 1, 0]
    assert [row.is_idle for row in found.rows] == [False, False, False, True, False, False]
    assert found.notes == [f"{tmp_path / 'copy.dpk'} and {steps.packs[0]} restore the same checkpoint"]


def test_circles(tmp_path: Path) -> None:
    """Exact packs there and back, and one that follows them."""
    states = [State(MODEL), State(tuned_model(MODEL, 3)), State(MODEL), State(tuned_model(MODEL, 7))]
    steps = make_steps(tmp_path, states, recipe=deltapack.Recipe(exact=True))
    found = deltapack.log_packs(steps.packs)
    assert [(row.link, row.root, row.total_bytes) for row in found.rows] == [(0, "", 0)] * 3
    assert [row.follows for row in found.rows] == [str(steps.packs[at]) for at in (1, 0, 1)]
    assert "in a circle" in found.notes[-1] and str(steps.packs[2]) in found.notes[-1]


def test_damaged_packs_are_listed(steps: Steps, tmp_path: Path) -> None:
    data = bytearray(steps.packs[1].read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.dpk").write_bytes(data)
    (tmp_path / "text.dpk").write_text("not a pack")
    shutil.copy(steps.packs[0], tmp_path / "whole.dpk")
    found = deltapack.log_packs([tmp_path, tmp_path / "missing.dpk"])
    assert [row.path.name for row in found.rows] == ["whole.dpk"]
    assert [path.name for path, _ in found.damaged] == ["damaged.dpk", "text.dpk", "missing.dpk"]
    assert "the index is damaged" in found.damaged[0][1] and "not a .dpk pack" in found.damaged[1][1]


def test_long_chains_are_told_without_recursion(steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deltapack.packs import lineage

    row = deltapack.log_packs(steps.packs[0]).rows[0]
    rows = {tmp_path / f"{number}.dpk": number for number in range(3000)}
    monkeypatch.setattr(lineage, "_files", lambda paths: list(rows))
    monkeypatch.setattr(
        lineage, "_row", lambda path: replace(row, path=path, base=f"{rows[path]}", result=f"{rows[path] + 1}", root="", link=0)
    )
    found = deltapack.log_packs(tmp_path)
    assert [row.link for row in found.rows] == list(range(1, 3001))


def test_no_packs(tmp_path: Path) -> None:
    for paths in (tmp_path, [tmp_path], []):
        with pytest.raises(RecipeError, match="there are no packs"):
            deltapack.log_packs(paths)
    with pytest.raises(RecipeError, match="paths is not a list of paths"):
        deltapack.log_packs(5)  # type: ignore[arg-type]
