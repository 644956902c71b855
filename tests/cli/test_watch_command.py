"""`deltapack watch`: options reach the use case, and what it tells is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Run, StandIn
from support.runs import same_model, write_base, write_step

import deltapack


def events(folder: Path) -> list[deltapack.PackedStep | deltapack.SkippedStep | deltapack.ChangedStep]:
    return [
        deltapack.PackedStep(1, folder / "step-00000001.dpk", 1000, 4000, None, (), ()),
        deltapack.SkippedStep(2, folder / "checkpoint-2", "the index of the shards is missing"),
        deltapack.PackedStep(3, folder / "step-00000003.dpk", 100, 4000, 1, (0,), (), ("step 2 is missing",)),
        deltapack.ChangedStep(4, folder / "checkpoint-4", folder / "step-00000004.dpk"),
    ]


def test_options_reach_the_use_case(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    recorder = stand_in("watch", iter(()))
    assert run("watch", tmp_path).exit_code == 0
    assert recorder.args == (tmp_path,)
    how = {"base": None, "out": None, "every_anchor": 20, "keep": None, "settle": 10, "poll": 2, "once": False, "workers": None}
    assert recorder.kwargs == how
    base = write_base(tmp_path / "base")
    typed = ["--base", base, "-o", tmp_path / "p", "--every-anchor", 3, "--keep", 2, "--settle", 0.5, "--poll", 1, "--once", "--workers", 1]
    assert run("watch", tmp_path, *typed).exit_code == 0
    assert recorder.kwargs == {
        "base": base,
        "out": tmp_path / "p",
        "every_anchor": 3,
        "keep": 2,
        "settle": 0.5,
        "poll": 1,
        "once": True,
        "workers": 1,
    }


def test_what_is_told_is_printed(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("watch", events(tmp_path))
    done = run("watch", tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("step 1: ") and lines[0].endswith("4.0 times smaller (from the base)")
    assert lines[1].endswith("40.0 times smaller (follows step 1)") and lines[2] == "removed packs of steps 0"
    assert "step 2 was not packed: the index of the shards is missing" in " ".join(done.stderr.split())
    changed = "step 4 was packed, and its checkpoint has changed since: remove its pack and those after it to pack it anew"
    assert "Warning: step 2 is missing" in " ".join(done.stderr.split())
    assert changed in " ".join(done.stderr.split())
    quiet = run("watch", tmp_path, "-q")
    assert quiet.stdout == "" and "step 2" in quiet.stderr
    rows = [json.loads(line) for line in run("watch", tmp_path, "--json").stdout.splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["pack"] == str(tmp_path / "step-00000001.dpk") and rows[1]["reason"] == "the index of the shards is missing"


def test_what_is_there_is_told_first(run: Run, tmp_path: Path) -> None:
    """A folder in which nothing is found is not taken for one in which all is done."""
    (tmp_path / "foo").mkdir()
    for options in ((), ("-q",), ("--json",)):
        done = run("watch", tmp_path, "--once", *options)
        assert (done.exit_code, done.stdout) == (0, "")
        assert "has no checkpoints yet: a name tells the step" in done.stderr and done.stderr.endswith("; found foo\n")
    for step in (1, 2):
        write_step(tmp_path, step)
    deltapack.pack_step(tmp_path / "packs", tmp_path / "checkpoint-1", 1)
    how = ("watch", tmp_path, "--once", "--settle", 0)
    told = f"{tmp_path} has 2 checkpoints, {{}} of them packed in {tmp_path / 'packs'}\n"
    assert run(*how).stdout.startswith(told.format(1) + "step 2: ")
    assert run(*how).stdout == told.format("all")
    assert run(*how, "--json").stdout == run(*how, "-q").stdout == ""
    for name in ("a", "b", "c"):
        (tmp_path / "none" / name).mkdir(parents=True)
    (tmp_path / "none" / ".hidden").mkdir()
    assert run("watch", tmp_path / "none", "--once").stderr.endswith("found a, b, c\n")
    (tmp_path / "none" / "x.safetensors").touch()
    assert run("watch", tmp_path / "none", "--once").stderr.endswith("found a, b, c and others\n")


def test_once_tells_by_its_exit_code_that_a_step_was_not_packed(run: Run, tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    (tmp_path / "checkpoint-2").mkdir()
    done = run("watch", tmp_path, "--once", "--settle", 0)
    assert done.exit_code == 1 and "step 2 was not packed" in done.stderr and "step 1: " in done.stdout
    (tmp_path / "checkpoint-2").rmdir()
    assert run("watch", tmp_path, "--once", "--settle", 0).exit_code == 0


def test_a_step_that_was_tried_again_is_no_failure(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("watch", [deltapack.SkippedStep(1, tmp_path / "checkpoint-1", "it changed"), *events(tmp_path)[:1]])
    assert run("watch", tmp_path, "--once").exit_code == 0


def test_an_interrupt_says_what_becomes_of_packs(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("watch", KeyboardInterrupt())
    done = run("watch", tmp_path)
    assert done.exit_code == 130 and done.stderr.endswith("\nInterrupted; each pack that is there is whole.\n")


def test_numbers_that_cannot_be_are_usage_errors(run: Run, tmp_path: Path) -> None:
    for wrong in (("--every-anchor", 0), ("--keep", 0), ("--settle", -1), ("--poll", 0), ("--base", tmp_path / "no"), ("-o", "x.dpk")):
        assert run("watch", tmp_path, "--once", *wrong).exit_code == 2
    assert run("watch", tmp_path / "nowhere").exit_code == 2


def test_a_run_is_packed_and_restored(run: Run, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for step in (1, 2):
        write_step(tmp_path, step)
    done = run("watch", tmp_path, "--base", base, "--once", "--settle", 0)
    assert done.exit_code == 0, done.stderr
    packs = sorted((tmp_path / "packs").iterdir())
    assert [path.name for path in packs] == ["step-00000001.dpk", "step-00000002.dpk"]
    assert run("apply", base, *packs, "-o", tmp_path / "out").exit_code == 0
    assert same_model(tmp_path / "out", 2)


@pytest.mark.parametrize("with_base", [True, False], ids=["base", "no base"])
def test_apply_takes_a_step_of_a_run(with_base: bool, run: Run, tmp_path: Path) -> None:
    """Also where the run has more than one anchor, and later packs."""
    base, packs = write_base(tmp_path / "base"), tmp_path / "packs"
    for step in (10, 20, 30):
        deltapack.pack_step(packs, write_step(tmp_path, step), step, base=base if with_base else None, every_anchor=2)
    start = [base] if with_base else []
    for step in (10, 20, 30):
        done = run("apply", *start, packs, "--step", step, "-o", tmp_path / f"o{step}")
        assert done.exit_code == 0 and same_model(tmp_path / f"o{step}", step), done.stderr
    assert run("apply", "--step", 20, *start, packs, "-o", tmp_path / "o20").stdout.startswith("there already")
    assert run("apply", *start, packs, "--step", 20, "-o", tmp_path / "half", "--dtype", "f32", "--json").exit_code == 0
    other = run("apply", *([] if with_base else [base]), packs, "--step", 20, "-o", tmp_path / "x")
    assert other.exit_code == 4 and ("Name the base" if with_base else "Leave out the base") in other.stderr
    assert "expected one of 10, 20, 30" in run("apply", *start, packs, "--step", 25, "-o", tmp_path / "x").stderr
    both = run("apply", base, packs / "step-00000010.dpk", packs / "step-00000030.dpk", "-o", tmp_path / "x")
    assert both.exit_code == 4 and "--step N" in both.stderr and "merge" not in both.stderr
    assert not (tmp_path / "x").exists()


def test_a_lost_pack_of_a_step_is_told(run: Run, tmp_path: Path) -> None:
    base, packs = write_base(tmp_path / "base"), tmp_path / "packs"
    for step in (1, 2, 3):
        deltapack.pack_step(packs, write_step(tmp_path, step), step, base=base)
    (packs / "step-00000002.dpk").unlink()
    done = run("apply", base, packs, "--step", 3, "-o", tmp_path / "x")
    assert done.exit_code == 4 and "A pack of the run is missing" in done.stderr and "step-00000003.dpk" in done.stderr


def test_a_step_is_one_of_a_folder(run: Run, tmp_path: Path) -> None:
    base, packs = write_base(tmp_path / "base"), tmp_path / "packs"
    pack = deltapack.pack_step(packs, write_step(tmp_path, 1), 1, base=base).pack
    wrong = [(base, pack, "--step", 1), (base, packs, packs, "--step", 1), (pack, "--step", 1)]
    for words in wrong:
        done = run("apply", *words, "-o", tmp_path / "x")
        assert done.exit_code == 2 and "--step takes one folder of packs" in done.stderr
    for words, message in (((base, packs), "with --step N the step of a training run"), ((base,), "Missing argument 'PACK...'")):
        done = run("apply", *words, "-o", tmp_path / "x")
        assert done.exit_code == 2 and message in done.stderr
    done = run("compress", base, base, "-o", tmp_path / "x.dpk", "--base-pack", packs)
    assert done.exit_code == 2 and "--base-pack A.dpk --base-pack B.dpk" in done.stderr
