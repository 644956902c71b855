"""Steps of a run as packs: chains, anchors, retention, restoring, and what must not happen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.builders import ROOT, leftovers, write_file, write_folder
from support.runs import FILES, base_model, same_model, step_model, weights_of, write_base, write_step

import deltapack
from deltapack.errors import BaseMismatchError, CheckpointError, DeltapackError, FormatError, OutputError, RecipeError
from deltapack.format import placing
from deltapack.runs.keeping import keep_newest, pack_step
from deltapack.runs.links import LAST_STEP, pack_name, read_run
from deltapack.runs.restoring import restore_step


def pack_run(folder: Path, steps: range, **options: Any) -> list[deltapack.PackedStep]:
    return [pack_step(folder / "packs", write_step(folder, step), step, **options) for step in steps]


@pytest.mark.parametrize("with_base", [True, False], ids=["base", "no base"])
def test_every_step_comes_back(with_base: bool, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base") if with_base else None
    packed = pack_run(tmp_path, range(1, 8), base=base, every_anchor=3)
    assert [one.follows for one in packed] == [None, 1, 2, None, 4, 5, None]
    assert [one.pack.name for one in packed] == [f"step-{step:08d}.dpk" for step in range(1, 8)]
    assert all(one.pack_bytes == one.pack.stat().st_size < one.checkpoint_bytes for one in packed if one.follows)
    for step in range(1, 8):
        out = restore_step(tmp_path / "packs", step, tmp_path / f"out{step}", base=base)
        assert same_model(out, step) and (out / "config.json").read_text() == "{}"
        assert weights_of(out) == weights_of(tmp_path / f"checkpoint-{step}")
    assert not leftovers(tmp_path / "packs")


def test_packs_of_a_run_without_a_base_take_any(tmp_path: Path) -> None:
    """Which is said as it is: not as if the base had changed since."""
    packs = [one.pack for one in pack_run(tmp_path, range(1, 3))]
    report = deltapack.apply(write_base(tmp_path / "base"), packs, tmp_path / "out")
    assert same_model(tmp_path / "out", 2) and weights_of(tmp_path / "out") == weights_of(tmp_path / "checkpoint-2")
    assert report.notes == ["no base is needed: no tensor of this one was taken"]


def test_packs_say_all_so_a_run_goes_on_anywhere(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    pack_run(tmp_path, range(1, 4), base=base)
    (tmp_path / "packs").rename(tmp_path / "moved")
    (tmp_path / "moved" / "step-00000002.dpk").rename(tmp_path / "moved" / "step-00000002.dpk.away")
    (tmp_path / "moved" / "step-00000002.dpk.away").rename(tmp_path / "moved" / "step-00000002.dpk")
    packed = pack_step(tmp_path / "moved", write_step(tmp_path, 4), 4, base=base)
    assert packed.follows == 3
    assert same_model(restore_step(tmp_path / "moved", 4, tmp_path / "out", base=base), 4)


def test_a_step_that_is_packed_late_follows_the_one_before_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for step, follows in ((1, None), (4, 1), (2, 1), (5, 4)):
        assert pack_step(tmp_path / "packs", write_step(tmp_path, step), step, base=base).follows == follows
    for step in (1, 2, 4, 5):
        assert same_model(restore_step(tmp_path / "packs", step, tmp_path / f"out{step}", base=base), step)


def test_what_comes_back_to_an_earlier_state_is_made_from_the_base(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    models = [step_model(1), step_model(2), step_model(2), step_model(1), step_model(3), base_model(), step_model(1)]
    follows = []
    for number, model in enumerate(models):
        write_folder(tmp_path / f"c{number}", model, {**FILES, "config.json": f'{{"n": {number}}}'})
        follows.append(pack_step(folder, tmp_path / f"c{number}", number, base=base).follows)
    assert follows == [None, 0, 1, None, 3, None, None]
    for number in range(len(models)):
        restore_step(folder, number, tmp_path / f"o{number}", base=base)
        assert weights_of(tmp_path / f"o{number}") == weights_of(tmp_path / f"c{number}")
        assert (tmp_path / f"o{number}" / "config.json").read_text() == f'{{"n": {number}}}'


def test_the_first_step_is_the_base(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    write_folder(tmp_path / "checkpoint-0", base_model(), {"config.json": '{"other": 1}'})
    assert pack_step(folder, tmp_path / "checkpoint-0", 0, base=base).follows is None
    assert pack_step(folder, write_step(tmp_path, 1), 1, base=base).follows is None
    for step, text in ((0, '{"other": 1}'), (1, "{}")):
        out = restore_step(folder, step, tmp_path / f"out{step}", base=base)
        assert same_model(out, step) and (out / "config.json").read_text() == text


def test_only_what_newer_steps_need_stays(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    removed = [one.removed for one in pack_run(tmp_path, range(1, 8), base=base, every_anchor=3, keep=2)]
    assert removed == [(), (), (), (), (1, 2, 3), (), ()]
    assert [link.step for link in read_run(folder).links] == [4, 5, 6, 7]
    for step in (6, 7):
        assert same_model(restore_step(folder, step, tmp_path / f"out{step}", base=base), step)
    assert keep_newest(folder, 1) == (4, 5, 6)
    assert same_model(restore_step(folder, 7, tmp_path / "last", base=base), 7)


def test_packs_are_removed_from_the_newest_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is cut short, every pack that is left has what it needs."""
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    pack_run(tmp_path, range(1, 6), base=base, every_anchor=3)
    unlink = os.unlink

    def once(path: Path) -> None:
        unlink(path)
        monkeypatch.setattr("deltapack.runs.keeping.os.unlink", refuse)

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("deltapack.runs.keeping.os.unlink", once)
    with pytest.raises(OutputError, match="cannot be removed: Operation not permitted"):
        keep_newest(folder, 1)
    monkeypatch.undo()
    assert [link.step for link in read_run(folder).links] == [1, 2, 4, 5]
    for step in (1, 2, 4, 5):
        assert same_model(restore_step(folder, step, tmp_path / f"out{step}", base=base), step)


def test_a_run_that_went_back(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    pack_run(tmp_path, range(1, 5), base=base)
    (broken := tmp_path / "broken.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        pack_step(folder, broken, 3, base=base, going_back=True)
    assert [link.step for link in read_run(folder).links] == [1, 2, 3, 4]  # nothing is lost before the new pack is made
    packed = pack_step(folder, tmp_path / "checkpoint-4", 3, base=base, going_back=True)
    assert (packed.follows, packed.removed) == (2, (4, 3))
    assert [link.step for link in read_run(folder).links] == [1, 2, 3]
    assert same_model(restore_step(folder, 3, tmp_path / "out", base=base), 4)


def test_the_state_of_a_trainer_gets_its_weights_back(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_step(tmp_path, 2)
    weights = weights_of(checkpoint)
    pack_step(tmp_path / "packs", checkpoint, 2, base=base)
    write_file(checkpoint / "model.safetensors", step_model(1))
    with pytest.raises(OutputError, match=r"holds weights: expected a folder without weights, .* found model\.safetensors"):
        restore_step(tmp_path / "packs", 2, checkpoint, base=base)
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "config.json").write_text("kept")
    before = {path.name for path in checkpoint.iterdir()}
    assert restore_step(tmp_path / "packs", 2, checkpoint, base=base) == checkpoint
    assert same_model(checkpoint, 2) and weights_of(checkpoint) == weights
    assert {path.name for path in checkpoint.iterdir()} == before | {"model.safetensors"}
    assert (checkpoint / "config.json").read_text() == "kept"


@pytest.mark.parametrize("step", [1, 2, 3], ids=["an anchor", "a chain", "a later anchor"])
def test_a_step_that_is_there_is_a_success(step: int, tmp_path: Path) -> None:
    """In a folder that was restored, and in the trainer's own, which has more files."""
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    pack_run(tmp_path, range(1, 4), base=base, every_anchor=2)
    restore_step(folder, step, tmp_path / "out", base=base)
    for out in (tmp_path / "out", tmp_path / f"checkpoint-{step}"):
        before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*")}
        assert restore_step(folder, step, out, base=base) == out
        assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*")} == before
        with pytest.raises(OutputError, match="holds weights"):
            restore_step(folder, step % 3 + 1, out, base=base)
    restore_step(folder, step % 3 + 1, tmp_path / "out", base=base, force=True)
    assert same_model(tmp_path / "out", step % 3 + 1)


def test_shards_come_back_before_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds an index finds all that it names."""
    checkpoint, model = tmp_path / "checkpoint-1", step_model(1)
    checkpoint.mkdir()
    names = [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]
    for name, tensor in zip(names, model, strict=True):
        write_file(checkpoint / name, {tensor: model[tensor]})
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip(model, names, strict=True))}))
    weights = weights_of(checkpoint)
    pack_step(tmp_path / "packs", checkpoint, 1)
    for path in checkpoint.iterdir():
        path.unlink()
    move_new, moved = placing.move_new, list[str]()

    def recorded(old: Path, new: Path) -> None:
        moved.append(Path(new).name)
        move_new(old, new)

    monkeypatch.setattr("deltapack.runs.restoring.move_new", recorded)
    restore_step(tmp_path / "packs", 1, checkpoint)
    of_weights = [name for name in moved if name in weights]
    assert weights_of(checkpoint) == weights and of_weights == [*names, index.name]


def test_a_missing_or_damaged_pack_is_told(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    pack_run(tmp_path, range(1, 5), base=base)
    second = folder / "step-00000002.dpk"
    data = second.read_bytes()
    second.unlink()
    with pytest.raises(BaseMismatchError, match="neither a pack of the run nor the base gives") as caught:
        restore_step(folder, 4, tmp_path / "out", base=base)
    assert caught.value.path == folder / "step-00000003.dpk" and not (tmp_path / "out").exists()
    assert same_model(restore_step(folder, 1, tmp_path / "one", base=base), 1)
    second.write_bytes(data[:-9])
    for call in (lambda: restore_step(folder, 4, tmp_path / "out", base=base), lambda: keep_newest(folder, 1)):
        with pytest.raises(FormatError):
            call()
    assert len(list(folder.glob("*.dpk"))) == 4


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    pack_run(tmp_path, range(1, 3), base=base)
    write_folder(tmp_path / "other", step_model(3), FILES)
    third = write_step(tmp_path, 3)
    with pytest.raises(BaseMismatchError, match="start from a base, and none was given"):
        pack_step(folder, third, 3)
    for wrong in (tmp_path / "other", None):
        with pytest.raises(BaseMismatchError):
            restore_step(folder, 2, tmp_path / "out", base=wrong)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000001.dpk", "step-00000002.dpk"]
    assert not (tmp_path / "out").exists()
    # Two anchors agree on what the run started from; a single one may itself follow a pack that is missing.
    pack_step(folder, third, 3, base=base, every_anchor=1)
    with pytest.raises(BaseMismatchError, match="the run was packed with another base"):
        pack_step(folder, write_step(tmp_path, 4), 4, base=tmp_path / "other")
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("with_base", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("there", [True, False], ids=["checkpoints", "packs alone"])
@pytest.mark.parametrize(("lost", "others"), [((10,), True), ((20,), True), ((20,), False), ((10,), False), ((10, 20), False)])
def test_after_a_gap_a_run_begins_anew(lost: tuple[int, ...], others: bool, there: bool, with_base: bool, tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base") if with_base else None, tmp_path / "packs"
    pack_run(tmp_path, range(10, 60, 10), base=base, every_anchor=3)  # 10 20 30, 40 50
    for step in (*lost, *(() if others else (40, 50))):
        (folder / pack_name(step)).unlink()
    after = folder / pack_name(lost[-1] + 10)
    with pytest.raises(BaseMismatchError, match=r"neither a pack of the run nor the base|a pack before this one is missing") as caught:
        restore_step(folder, 30, tmp_path / "out", base=base)
    assert caught.value.path == after
    how: dict[str, Any] = {"base": base, "checkpoints": {30: tmp_path / "checkpoint-30"} if there else None}
    late = write_step(tmp_path, 35)
    if not with_base and not others and lost[0] == 10:  # nothing says that the run started from nothing
        with pytest.raises(BaseMismatchError, match="a pack before this one is missing"):
            pack_step(folder, late, 35, **how)
        return
    packed = pack_step(folder, late, 35, **how)
    assert packed.follows is None and len(packed.warnings) == 1 and packed.warnings[0].startswith(f"{after} follows a checkpoint")
    packed = pack_step(folder, write_step(tmp_path, 36), 36, **how)
    assert (packed.follows, packed.warnings) == (35, ())
    for step in (35, 36, *((50,) if others else ())):
        assert same_model(restore_step(folder, step, tmp_path / f"out{step}", base=base), step)


def test_two_packs_of_a_step_are_no_run(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "packs"
    [packed] = pack_run(tmp_path, range(1, 2), base=base)
    shutil.copy(packed.pack, folder / "step-000000001.dpk")
    with pytest.raises(RecipeError, match="two packs of one step"):
        read_run(folder)


def test_a_step_is_packed_once(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    [packed] = pack_run(tmp_path, range(1, 2), base=base)
    data = packed.pack.read_bytes()
    with pytest.raises(OutputError, match="the step has a pack already"):
        pack_step(tmp_path / "packs", tmp_path / "checkpoint-1", 1, base=base)
    assert packed.pack.read_bytes() == data


@pytest.mark.parametrize(
    "wrong", [{"step": -1}, {"step": 10**15}, {"step": "1"}, {"every_anchor": 0}, {"every_anchor": 1001}, {"keep": 0}, {"keep": 1.5}]
)
def test_numbers_that_cannot_be(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        pack_step(tmp_path / "packs", tmp_path, **{"step": 1, **wrong})
    assert not (tmp_path / "packs").exists()


def test_the_last_step_that_has_a_name(tmp_path: Path) -> None:
    pack_step(tmp_path / "packs", write_step(tmp_path, 1), LAST_STEP)
    assert same_model(restore_step(tmp_path / "packs", LAST_STEP, tmp_path / "out"), 1)
    with pytest.raises(RecipeError, match=r"step is out of range: expected 0 to 999,999,999,999,999, found 1000000000000000"):
        restore_step(tmp_path / "packs", LAST_STEP + 1, tmp_path / "out")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(DeltapackError):
        pack_step(tmp_path / "packs", tmp_path / "checkpoint-1", 1)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_kill_in_the_middle_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    pack_run(tmp_path, range(1, 2), base=base)
    write_step(tmp_path, 2)
    code = f"""
import os, signal, deltapack
from deltapack.runs import keeping
keeping.place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
deltapack.pack_step({str(tmp_path / "packs")!r}, {str(tmp_path / "checkpoint-2")!r}, 2, base={str(base)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [link.step for link in read_run(tmp_path / "packs").links] == [1]
    assert pack_step(tmp_path / "packs", tmp_path / "checkpoint-2", 2, base=base).follows == 1
    assert same_model(restore_step(tmp_path / "packs", 2, tmp_path / "out", base=base), 2)
