"""`deltapack log` and `squash`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import Pair, Run, StandIn

import deltapack
from deltapack.packs.squashing import SquashReport

LOCAL = {"engine": "local", "address": None, "progress": None}


@pytest.fixture(scope="module")
def chain(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two exact packs of which one follows the other, and one that does not belong to them."""
    folder = tmp_path_factory.mktemp("chain")
    deltapack.compress(pair.base, pair.finetuned, folder / "a.dpk", recipe=deltapack.Recipe(exact=True))
    deltapack.compress(pair.base, pair.base, folder / "b.dpk", recipe=deltapack.Recipe(exact=True), base_packs=[folder / "a.dpk"])
    return folder


def test_log_shows_chains_by_their_base(run: Run, chain: Path, tmp_path: Path) -> None:
    shutil.copy(chain / "b.dpk", tmp_path / "alone.dpk")
    result = run("log", chain / "a.dpk")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("base ") and lines[0].endswith(" (1 pack)")
    assert lines[1].split()[:4] == ["pack", "kind", "link", "changed"]
    assert lines[2].split()[:6] == ["a.dpk", "exact", "1", "2", "of", "3"]
    document = json.loads(run("log", tmp_path / "alone.dpk", "--json").stdout)
    assert [row["link"] for row in document["packs"]] == [1] and document["damaged"] == []
    assert run("log", chain / "a.dpk", "--quiet").stdout == ""


def test_log_shows_circles_gaps_and_damage(run: Run, pair: Pair, chain: Path, tmp_path: Path) -> None:
    result = run("log", chain)
    assert result.exit_code == 0 and result.stdout.startswith("in a circle (2 packs)\n") and "Note: " in result.stdout
    deltapack.apply(pair.base, pair.pack, tmp_path / "lossy")
    deltapack.compress(tmp_path / "lossy", pair.finetuned, tmp_path / "late.dpk")
    result = run("log", chain / "a.dpk", tmp_path / "late.dpk")
    assert result.exit_code == 0 and result.stdout.count("(1 pack)") == 2 and "or a pack is missing" in result.stdout
    (tmp_path / "x.dpk").write_text("no")
    result = run("log", pair.pack, tmp_path)
    assert result.exit_code == 3 and "pack.dpk" in result.stdout and result.stderr.startswith("Damaged: ") and "x.dpk" in result.stderr
    document = json.loads(run("log", pair.pack, tmp_path, "--json").stdout)
    assert [row["path"] for row in document["damaged"]] == [str(tmp_path / "x.dpk")]


def test_log_says_which_chains_need_no_base(run: Run, pair: Pair, tmp_path: Path) -> None:
    for step in (100, 200):
        deltapack.pack_step(tmp_path, pair.finetuned if step == 100 else pair.base, step)
    lines = run("log", tmp_path).stdout.splitlines()
    assert lines[0] == "no base is needed: any will do (2 packs)"
    assert [line.split()[:3] for line in lines[2:]] == [[f"step-00000{step}.dpk", "exact", f"{step // 100}"] for step in (100, 200)]
    for paths, told in (([tmp_path], [(1, False), (2, False)]), ([pair.pack], [(1, True)])):
        rows = json.loads(run("log", *paths, "--json").stdout)["packs"]
        assert [(row["link"], row["needs_base"]) for row in rows] == told


def test_log_wants_something_that_is_there(run: Run, tmp_path: Path) -> None:
    assert run("log").exit_code == 2
    assert run("log", tmp_path / "none").exit_code == 2
    assert "there are no packs" in run("log", tmp_path).stderr


def test_forks_are_indented(run: Run, pair: Pair, tmp_path: Path) -> None:
    for seed in (1, 2):
        recipe = deltapack.Recipe(seed=seed, drop_rate=0.5)
        deltapack.compress(pair.base, pair.finetuned, tmp_path / f"s{seed}.dpk", recipe=recipe)
        deltapack.compress(
            pair.base, pair.base, tmp_path / f"t{seed}.dpk", recipe=recipe, base_packs=[tmp_path / "s1.dpk"], allow_unrelated=True
        )
    lines = run("log", tmp_path / "s1.dpk", tmp_path / "t1.dpk", tmp_path / "t2.dpk").stdout.splitlines()
    assert [line[: line.index(".dpk")] for line in lines if ".dpk" in line][:3] == ["  s1", "    t1", "    t2"]


def test_squash_passes_its_options(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "ab.dpk"
    use_case = stand_in("squash", SquashReport(out, 1234, [pair.pack, pair.pack], 5678, False, ["a note"]))
    result = run("squash", pair.pack, pair.pack, "-o", out)
    assert use_case.args == ((pair.pack, pair.pack), out)
    assert use_case.kwargs == {"base": None, "weight_files": None, "force": False, "workers": None, **LOCAL}
    assert "size        1.2 kB (1,234 bytes), steps put behind one another\n" in result.stdout
    assert "stands for  2 packs of 5.7 kB\n" in result.stdout and "Note: a note\n" in result.stdout
    assert run("squash", pair.pack, "-o", out, "--base", pair.base, "--weights", "index", "--force", "--workers", "3", "-q").stdout == ""
    assert use_case.kwargs == {"base": pair.base, "weight_files": "index", "force": True, "workers": 3, **LOCAL}
    document = json.loads(run("squash", pair.pack, "-o", out, "--json").stdout)
    assert (document["pack"], document["links"]) == (str(out), [str(pair.pack)] * 2)


def test_squash_works(run: Run, pair: Pair, chain: Path, tmp_path: Path) -> None:
    assert "give the base" in run("squash", pair.pack, "-o", tmp_path / "x.dpk").stderr.lower()
    result = run("squash", pair.pack, "-o", tmp_path / "x.dpk", "--base", pair.base)
    assert result.exit_code == 0 and "coded anew, over the base" in result.stdout
    assert run("verify", tmp_path / "x.dpk", "--base", pair.base).exit_code == 0
    assert run("squash", chain / "a.dpk", "-o", tmp_path / "y.dpk").exit_code == 0
    assert run("squash", "-o", tmp_path / "z.dpk").exit_code == 2
