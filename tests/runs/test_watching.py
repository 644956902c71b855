"""Checkpoints packed as they appear: only complete ones, the oldest first, again and again; time is told by the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.builders import ROOT, write_file
from support.distributed import save_alone
from support.runs import same_model, step_model, write_base, write_step

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import BaseMismatchError, CheckpointError, FormatError, NotACheckpointError, OutputError, RecipeError
from deltapack.packing.compressing import compress
from deltapack.runs.links import read_run


class Stopped(Exception):
    """The test has seen enough."""


@dataclass
class Time:
    """A clock that only sleeping moves; at each sleep the next thing happens."""

    happens: list[Callable[[], Any]] = field(default_factory=list)
    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if not self.happens:
            raise Stopped
        self.happens.pop(0)()

    def clock(self) -> float:
        return self.now


def nothing() -> None:
    """Time passes."""


def seen(folder: Path, *happens: Callable[[], Any], **options: Any) -> list[tuple[int, object]]:
    """What is told while these things happen, one at each look: steps with what they follow, or why they were skipped."""
    moments = Time(list(happens))
    events = deltapack.watch(folder, settle=3, poll=1, sleep=moments.sleep, clock=moments.clock, **options)
    return list(told(events))


def told(events: Iterator[deltapack.PackedStep | deltapack.SkippedStep | deltapack.ChangedStep]) -> Iterator[tuple[int, object]]:
    try:
        for event in events:
            if isinstance(event, deltapack.ChangedStep):
                yield event.step, f"changed: {event.pack.name}"
            else:
                yield event.step, event.follows if isinstance(event, deltapack.PackedStep) else event.reason
    except Stopped:
        return


def test_the_oldest_first_and_only_what_has_settled(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    write_step(run, 10)
    touched = run / "checkpoint-9" / "config.json"
    waits = [nothing] * 3
    assert seen(run, *waits, base=base) == [(10, None)]
    write_step(run, 9)
    write_step(run, 8)
    # 9 is written to at each look, and 10 has a pack already.
    assert seen(run, *[lambda: os.utime(touched)] * 9, base=base) == [(8, None)]
    assert seen(run, nothing, nothing, base=base) == []
    assert seen(run, *waits, base=base) == [(9, 8)]
    for step in (8, 9, 10):
        assert same_model(deltapack.restore_step(run / "packs", step, tmp_path / f"out{step}", base=base), step)


def test_later_ones_wait_for_one_that_is_being_written(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_step(tmp_path, 1)
    write_step(tmp_path, 2)
    touched = tmp_path / "checkpoint-1" / "config.json"
    busy: list[Callable[[], Any]] = [lambda: touched.write_text(touched.read_text() + " ")] * 5
    assert seen(tmp_path, *busy, base=base) == []
    assert seen(tmp_path, *busy, nothing, nothing, nothing, base=base) == [(1, None), (2, 1)]


def test_once_ends_when_all_is_done(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for step in (1, 2, 3):
        write_step(tmp_path, step)
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "runs").mkdir()
    first, second, third = seen(tmp_path, *[nothing] * 3, base=base, once=True)
    assert (first, third) == ((1, None), (3, 1))
    assert second[0] == 2 and "model.safetensors" in str(second[1])
    assert seen(tmp_path, *[nothing] * 3, base=base, once=True) == [second]
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert seen(tmp_path, base=base, once=True) == []


def test_what_could_not_be_read_is_told_once_and_tried_again_when_it_changes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    whole = write_step(tmp_path, 1) / "model.safetensors"
    data = whole.read_bytes()
    whole.write_bytes(data[:-1])
    events = seen(tmp_path, *[nothing] * 9, lambda: whole.write_bytes(data), *[nothing] * 3, base=base)
    assert [step for step, _ in events] == [1, 1] and events[1][1] is None and "model.safetensors" in str(events[0][1])


def test_shards_are_complete_when_their_index_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "step_5"
    folder.mkdir()
    names = [f"model-0000{at}-of-00002.safetensors" for at in (1, 2)]
    save_file({"a": torch.ones(3)}, folder / names[0])
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{names[0]}", "b": "{names[1]}"}}}}')
    last = lambda: save_file({"b": torch.ones(2)}, folder / names[1])  # noqa: E731
    events = seen(tmp_path, *[nothing] * 6, last, *[nothing] * 3)
    assert [(step, follows) for step, follows in events if follows is None] == [(5, None)]
    assert "no such file" in str(events[0][1]) and len(events) == 2


def test_a_folder_with_two_models_is_skipped(tmp_path: Path) -> None:
    path = write_step(tmp_path, 1)
    save_file({"a": torch.ones(3)}, path / "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    write_step(tmp_path, 2)
    (one, why), two = seen(tmp_path, *[nothing] * 3, once=True)
    assert (one, two) == (1, (2, None)) and "two models" in str(why)


def test_a_link_that_leads_to_itself_is_skipped(tmp_path: Path) -> None:
    for name in ("step-1", "step-2.safetensors"):
        (tmp_path / name).symlink_to(name)
    write_step(tmp_path, 3)
    *loops, whole = seen(tmp_path, *[nothing] * 3, once=True)
    assert [(step, isinstance(why, str)) for step, why in loops] == [(1, True), (2, True)] and whole == (3, None)
    assert "Too many levels of symbolic links" in str(loops[1][1])
    shutil.move(tmp_path / "checkpoint-3", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-3").symlink_to("checkpoint-3")
    assert seen(tmp_path, *[nothing] * 3, once=True) == [*loops, (4, 3)]  # step 3 is packed


def test_folders_of_distributed_checkpoints(tmp_path: Path) -> None:
    state = {"a": torch.arange(64.0), "b": torch.ones(5)}
    for step in (1, 2):
        save_alone({"model": state, "optimizer": {"m": torch.ones(99)}}, tmp_path / f"step-{step}")
        state = {name: tensor + 1 for name, tensor in state.items()}
    assert seen(tmp_path, *[nothing] * 3, once=True) == [(1, None), (2, 1)]
    with open_checkpoint(deltapack.restore_step(tmp_path / "packs", 2, tmp_path / "out")) as checkpoint:
        assert checkpoint.read("a").tolist() == list(range(1, 65)) and list(checkpoint.tensors) == ["a", "b"]


def test_what_is_too_old_to_stay_is_not_packed_again(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for step in range(1, 6):
        write_step(tmp_path, step)
    options = {"base": base, "once": True, "keep": 2, "every_anchor": 1}
    assert seen(tmp_path, *[nothing] * 3, **options) == [(4, None), (5, None)]
    write_step(tmp_path, 6)
    assert seen(tmp_path, *[nothing] * 3, **options) == [(6, None)]
    assert [link.step for link in read_run(tmp_path / "packs").links] == [5, 6]
    assert seen(tmp_path, **options) == []


def test_what_changes_while_another_is_packed_waits_again(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for step in (1, 2):
        write_step(tmp_path, step)
    moments = Time([nothing] * 3)
    events = told(deltapack.watch(tmp_path, base=base, settle=3, poll=1, sleep=moments.sleep, clock=moments.clock))
    assert next(events) == (1, None)
    (tmp_path / "checkpoint-2" / "config.json").write_text('{"changed": 1}')
    assert list(events) == []


def test_what_changes_while_it_is_packed_is_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base")
    for step in (1, 2):
        write_step(tmp_path, step)
    weights = tmp_path / "checkpoint-1" / "model.safetensors"
    happens: list[Callable[[], Any]] = [
        lambda: shutil.copy(tmp_path / "checkpoint-2" / weights.name, weights),
        lambda: (tmp_path / "checkpoint-1" / "optimizer.pt").touch(),  # is not packed
    ]

    def rewritten(*args: Any, **options: Any) -> deltapack.CompressReport:
        report = compress(*args, **options)
        if happens:
            happens.pop(0)()
        return report

    monkeypatch.setattr("deltapack.runs.making.compress", rewritten)
    first, *rest = seen(tmp_path, *[nothing] * 9, base=base, once=True)
    assert first[0] == 1 and "the checkpoint changed while it was packed" in str(first[1])
    assert rest == [(1, None), (2, 1)]
    for step in (1, 2):
        assert same_model(deltapack.restore_step(tmp_path / "packs", step, tmp_path / f"out{step}", base=base), 2)


def rewrite(run: Path, step: int, other: int) -> None:
    """Put the weights of another step in place of a checkpoint's, with the times that they have elsewhere, as `cp -a` does."""
    weights = run / f"checkpoint-{step}" / "model.safetensors"
    elsewhere = run / "elsewhere.safetensors"
    write_file(elsewhere, step_model(other))
    os.utime(elsewhere, ns=(other, other))
    shutil.copy2(elsewhere, weights)


def test_what_changed_after_it_was_packed_is_told_once(tmp_path: Path) -> None:
    base, run = write_base(tmp_path / "base"), tmp_path / "run"
    run.mkdir()
    for step in (1, 2, 3):
        write_step(run, step)
    options = {"base": base, "once": True}
    assert seen(run, *[nothing] * 3, **options) == [(1, None), (2, 1), (3, 2)]
    packs = {path: path.read_bytes() for path in (run / "packs").iterdir()}
    changed = (2, "changed: step-00000002.dpk")
    again = lambda: rewrite(run, 2, 7)  # noqa: E731
    events = seen(run, lambda: rewrite(run, 2, 6), *[nothing] * 9, again, *[nothing] * 9, base=base)
    assert events == [changed, changed]  # as it changed twice
    assert seen(run, *[nothing] * 3, **options) == [changed]
    rewrite(run, 2, 2)
    assert seen(run, *[nothing] * 3, **options) == []
    assert {path: path.read_bytes() for path in (run / "packs").iterdir()} == packs


def test_files_of_a_packed_checkpoint(tmp_path: Path) -> None:
    """What a model needs counts; what is for people, the state of a trainer and what cannot be read do not."""
    base, run = write_base(tmp_path / "base"), tmp_path / "run"
    run.mkdir()
    for step in (1, 2, 3, 4):
        write_step(run, step)
    assert len(seen(run, *[nothing] * 3, base=base, once=True)) == 4
    (run / "checkpoint-1" / "config.json").write_text('{"other": 1}')
    (run / "checkpoint-2" / "README.md").write_text("for people")
    (run / "checkpoint-2" / "optimizer.pt").write_text("other")
    (run / "checkpoint-3" / "model.safetensors").write_bytes(b"damaged")
    (run / "checkpoint-4" / "model.safetensors").unlink()
    assert seen(run, *[nothing] * 4, base=base, once=True) == [(1, "changed: step-00000001.dpk")]


@pytest.mark.parametrize("keep", [None, 1])
def test_two_watchers_of_one_run(keep: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one packs the second step, the other one packs three, and may remove what the first one reads."""
    base, run = write_base(tmp_path / "base"), tmp_path / "run"
    run.mkdir()
    for step in range(1, 5):
        write_step(run, step)
    calls: list[str] = []
    other: list[tuple[int, object]] = []

    def raced(base: Path, checkpoint: Path, *args: Any, **options: Any) -> deltapack.CompressReport:
        calls.append(checkpoint.name)
        if calls == ["checkpoint-1", "checkpoint-2"]:
            other.extend(seen(run, *[nothing] * 3, base=tmp_path / "base", once=True, every_anchor=1, keep=keep))
        return compress(base, checkpoint, *args, **options)

    monkeypatch.setattr("deltapack.runs.making.compress", raced)
    first = seen(run, *[nothing] * 9, base=base, once=True)
    assert [step for step, _ in other] == ([2, 3, 4] if keep is None else [4])
    # What the other one has removed, this one packs anew, as it was not told to keep few.
    assert [step for step, _ in first] == ([1] if keep is None else [1, 3, 1, 2])
    packed = [link.step for link in read_run(run / "packs").links]
    assert packed == [1, 2, 3, 4]
    for step in packed:
        assert same_model(deltapack.restore_step(run / "packs", step, tmp_path / f"out{step}", base=base), step)
    assert [path for path in (run / "packs").iterdir() if path.suffix != ".dpk"] == []


def test_a_pack_that_goes_while_the_folder_is_read_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base")
    for step in (1, 2, 3):
        write_step(tmp_path, step)
    assert len(seen(tmp_path, *[nothing] * 3, base=base, once=True)) == 3
    packs = sorted((tmp_path / "packs").iterdir())
    listed = list(packs)
    packs[1].unlink()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
    assert [link.step for link in read_run(tmp_path / "packs").links] == [1, 3]


def test_packs_do_not_go_into_a_checkpoint(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    write_step(run, 1)
    write_step(elsewhere.parent, 2).rename(elsewhere)
    (run / "checkpoint-2").symlink_to(elsewhere)
    (tmp_path / "link").symlink_to(run)
    inside = [run / "checkpoint-1", tmp_path / "link" / "checkpoint-1" / "packs", run / "step-9", elsewhere / "packs"]
    for out in inside:
        with pytest.raises(RecipeError, match="inside of a checkpoint that is watched"):
            seen(run, *[nothing] * 3, out=out, once=True)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "checkpoint-2"] and not (elsewhere / "packs").exists()
    assert seen(run, *[nothing] * 3, out=tmp_path / "step-9", once=True) == [(1, None), (2, 1)]


def test_of_two_checkpoints_of_a_step_one_counts(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_step(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "step_1")
    assert seen(tmp_path, *[nothing] * 3, base=base, once=True) == [(1, None)]


def test_a_checkpoint_that_goes_away_is_forgotten(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for step in (1, 2):
        write_step(tmp_path, step)
    gone = lambda: shutil.rmtree(tmp_path / "checkpoint-1")  # noqa: E731
    assert seen(tmp_path, nothing, gone, nothing, nothing, base=base) == [(2, None)]


def test_what_is_no_fault_of_a_checkpoint_ends_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_step(tmp_path, 1)
    with pytest.raises(NotACheckpointError, match="no such file or folder"):
        seen(tmp_path, base=tmp_path / "nowhere")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError):
        seen(tmp_path, base=tmp_path / "damaged.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        seen(tmp_path, *[nothing] * 3, base=base, out=tmp_path / "file")
    with pytest.raises(NotACheckpointError, match="cannot list"):
        seen(tmp_path / "nowhere")
    for wrong in ({"settle": -1}, {"poll": 0}, {"settle": float("nan")}):
        with pytest.raises(RecipeError, match="seconds are out of range"):
            list(deltapack.watch(tmp_path, **wrong))
    assert seen(tmp_path, *[nothing] * 3, base=base) == [(1, None)]
    write_step(tmp_path, 2)
    with pytest.raises(BaseMismatchError):
        seen(tmp_path, *[nothing] * 3)
    (tmp_path / "packs" / "step-00000001.dpk").write_bytes(b"damaged")
    with pytest.raises(FormatError):
        seen(tmp_path, *[nothing] * 3, base=base)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_may_be_stopped_at_any_time(how: signal.Signals, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    for step in range(1, 9):
        write_step(run, step)
    command = [sys.executable, "-m", "deltapack", "watch", str(run), "--base", str(base), "--settle", "0", "--poll", "0.01"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # what is there
    process.stdout.readline()  # one step is packed, others are under way
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or "Interrupted" in errors
    left = [path.name for path in (run / "packs").iterdir() if path.suffix != ".dpk"]
    assert how == signal.SIGKILL or left == []
    packed = [link.step for link in read_run(run / "packs").links]
    assert packed == list(range(1, len(packed) + 1)) and packed
    rest = [step for step, _ in seen(run, *[nothing] * 3, base=base, once=True)]
    assert packed + rest == list(range(1, 9)) and {path.suffix for path in (run / "packs").iterdir()} == {".dpk"}
    assert same_model(deltapack.restore_step(run / "packs", 8, tmp_path / "out", base=base), 8)
