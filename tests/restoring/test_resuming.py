"""A run that was stopped is gone on with: finished weight files are kept, the rest is made, and the bytes are those of one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.builders import moved, random_tensor, read_folder, whole, write_folder

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.going_on import state_of
from deltapack.checkpoint.journal import file_digest, journaled
from deltapack.checkpoint.layout import NewTensor, Shard
from deltapack.checkpoint.manifest import JOURNAL
from deltapack.cli.main import cli
from deltapack.dtypes import BY_NAME
from deltapack.errors import OutputError, RecipeError
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.packing.recipe import Recipe
from deltapack.restoring import resuming

SHARDS = 8
SMALL: dict[str, Any] = {"max_shard_size": "45kB", "workers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, fine-tunes, packs, and what two of them restore in eight shards."""
    folder = tmp_path_factory.mktemp("model")
    base = {f"{number}": random_tensor(number, (100, 100)) for number in range(SHARDS)}
    write_folder(folder / "base", base, {"tokenizer.json": "x"})
    for name, seed in (("tuned", 7), ("other", 6)):
        write_folder(folder / name, {n: moved(t, seed) for n, t in base.items()}, {"tokenizer.json": "y"})
        deltapack.compress(folder / "base", folder / name, folder / f"{name}.dpk")
    apply(folder, folder / "whole")
    merge(folder, folder / "merged")
    return folder


def apply(model: Path, out: Path, **options: Any) -> Any:
    return deltapack.apply(model / "base", options.pop("pack", model / "tuned.dpk"), out, **{**SMALL, **options})


def merge(model: Path, out: Path, **options: Any) -> Any:
    return deltapack.merge(model / "base", [model / "tuned.dpk", model / "other.dpk"], out, weights=[0.5], **{**SMALL, **options})


DO = {"apply": (apply, "whole"), "merge": (merge, "merged")}


def unfinished(out: Path) -> Path:
    (folder,) = out.parent.glob(f".{out.name}.*.partial")
    return folder


def kill_after(count: int, do: Callable[..., Any], model: Path, out: Path, at: int | None = None, **options: Any) -> None:
    """Do it in a child that kills itself when so many files are finished, at a report of the progress: the next one unless given."""
    child = os.fork()
    if child == 0:
        done, when = iter(range(1, 100)), count + 1 if at is None else at

        def progress(_: int, __: int) -> None:
            if next(done) == when:
                deadline = time.monotonic() + 60
                while len(journaled(unfinished(out))[1]) < count and time.monotonic() < deadline:
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            do(model, out, progress=progress, **options)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    finished = len(journaled(unfinished(out))[1])
    assert finished == count if at is None else finished >= count  # at a report of its own, more may be finished


class Decoded:
    """Counts tensors that are made, of one chunk each."""

    def __init__(self) -> None:
        self.tensors = 0

    def __call__(self, done: int, total: int) -> None:
        self.tensors += 1


def resumed(do: Callable[..., Any], model: Path, out: Path, **options: Any) -> tuple[int, Any]:
    """Go on; return how many tensors were made, and the report."""
    decoded = Decoded()
    report = do(model, out, resume=True, progress=decoded, **options)
    assert JOURNAL not in os.listdir(out)
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")] == []
    return decoded.tensors, report


@pytest.mark.parametrize("count", range(SHARDS))
@pytest.mark.parametrize("verb", DO)
def test_killed_between_any_two_shards(verb: str, count: int, model: Path, tmp_path: Path) -> None:
    """Whether or not the killed run was to be resumed: nobody knows beforehand."""
    (do, expected), out = DO[verb], tmp_path / "out"
    kill_after(count, do, model, out, resume=bool(count % 2))
    made, report = resumed(do, model, out)
    assert made == SHARDS - count and report.tensors == SHARDS
    assert any(note.startswith(f"{count} tensors were there") for note in report.notes) == bool(count)
    assert read_folder(out) == read_folder(model / expected)


def test_killed_again_and_again(model: Path, tmp_path: Path) -> None:
    kill_after(3, apply, model, tmp_path / "out")
    child = os.fork()
    if child == 0:
        try:
            apply(model, tmp_path / "out", resume=True, progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert len(journaled(unfinished(tmp_path / "out"))[1]) == 3
    assert resumed(apply, model, tmp_path / "out")[0] == SHARDS - 3
    assert read_folder(tmp_path / "out") == read_folder(model / "whole")


def test_without_resume_what_was_finished_goes_with_a_line(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kill_after(5, apply, model, tmp_path / "out", resume=True)
    left, decoded = unfinished(tmp_path / "out").name, Decoded()
    apply(model, tmp_path / "out", progress=decoded)
    assert decoded.tensors == SHARDS and os.listdir(tmp_path) == ["out"]
    (line,) = caplog.messages
    assert line.startswith("removed what a killed run (process ") and line.endswith(left)


OTHERS: dict[str, dict[str, Any]] = {
    "weight": {"weight": 0.5},
    "rescale": {"rescale": 2.0},
    "dtype": {"dtype": "bf16"},
    "shards": {"max_shard_size": "85kB"},
    "unverified": {"verify": False},
}


@pytest.mark.parametrize("other", [*OTHERS, "pack", "base", "version"])
def test_another_run_is_not_gone_on_with(
    other: str, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, out = dict(OTHERS.get(other, {})), tmp_path / "out"
    kill_after(5, apply, model, out)
    if other == "pack":
        options["pack"] = model / "other.dpk"
    elif other == "version":
        monkeypatch.setattr(resuming, "__version__", "0")
    elif other == "base":
        os.utime(model / "base" / "model.safetensors", (0, 0))
    made, _ = resumed(apply, model, out, **options)
    assert made == SHARDS and f"{out} is begun anew: what is left of it is of another base, pack, option or version" in caplog.messages
    apply(model, tmp_path / "expected", **options)
    assert read_folder(out) == read_folder(tmp_path / "expected")


def test_a_base_is_the_same_when_its_disk_has_another_number(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may have when the machine was started again, which is when one goes on."""
    stat = Path.stat

    def mounted_again(path: Path) -> SimpleNamespace:
        found = stat(path)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**{**fields, "st_dev": found.st_dev + 1, "st_ino": found.st_ino + 1})

    with open_checkpoint(model / "base") as base:
        before = state_of(base)
        monkeypatch.setattr(Path, "stat", mounted_again)
        assert state_of(base) == before


def damage(path: Path, how: str) -> None:
    if how == "a bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(path, path.with_name("copy"))
        path.unlink()
        path.symlink_to("copy")


@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "a link"])
def test_a_damaged_file_is_made_again(how: str, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    kill_after(5, apply, model, out)
    damage(unfinished(out) / "model-00002-of-00008.safetensors", how)
    (unfinished(out) / "thrown in.txt").write_text("others'")
    made, _ = resumed(apply, model, out)
    assert made == SHARDS - 4 and read_folder(out) == read_folder(model / "whole")
    assert f"model-00002-of-00008.safetensors of the unfinished {out} is damaged, and is written again" in caplog.messages


def row(file: str, size: int = 1) -> bytes:
    return json.dumps({"file": file, "size": size, "digest": "0" * 32}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda text: text[:-3], 4),  # the last line was cut
        (lambda text: text + b'{"file": "model-0', 5),
        (lambda text: text + row("../../secret") + row("model-00007-of-00008.safetensors") + row("x.txt"), 5),
        (lambda text: b"", 0),
        (lambda text: b"\xff" + text, 0),
        (lambda text: text.replace(b'"deltapack": 1', b'"deltapack": 2'), 0),
        (lambda text: b"[" * 100_000 + text, 0),
    ],
)
def test_lists_that_were_cut_or_changed(change: Callable[[bytes], bytes], kept: int, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "secret").write_text("stays")
    kill_after(5, apply, model, out)
    path = unfinished(out) / JOURNAL
    path.write_bytes(change(path.read_bytes()))
    assert resumed(apply, model, out)[0] == SHARDS - kept
    assert read_folder(out) == read_folder(model / "whole") and (tmp_path / "secret").read_text() == "stays"


class StopHere(BaseException):
    """As Ctrl-C."""


def stop_after(count: int) -> Callable[[int, int], None]:
    calls = iter(range(1, SHARDS + 1))

    def progress(done: int, total: int) -> None:
        if next(calls) == count + 1:
            raise StopHere

    return progress


def test_interrupted(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With resume what is finished stays, and is told; without, and where nothing is finished, nothing stays."""
    monkeypatch.setattr(ThreadPoolExecutor, "submit", _at_once)
    out = tmp_path / "out"
    for count, options in ((5, {}), (0, {"resume": True})):
        with pytest.raises(StopHere):
            apply(model, out, progress=stop_after(count), **options)
        assert os.listdir(tmp_path) == [] and not caplog.messages
    with pytest.raises(StopHere):
        apply(model, out, progress=stop_after(5), resume=True)
    assert caplog.messages == [f"5 of 8 weight files of {out} are finished and kept: resume goes on from there"]
    assert os.listdir(tmp_path) == [unfinished(out).name]
    with pytest.raises(StopHere):
        apply(model, out, progress=stop_after(1), resume=True)
    assert caplog.messages[1:] == [f"6 of 8 weight files of {out} are finished and kept: resume goes on from there"]
    assert resumed(apply, model, out)[0] == 2 and read_folder(out) == read_folder(model / "whole")


def _at_once(pool: Any, call: Callable[..., None], *given: Any) -> Any:
    future = Future[None]()
    call(*given)
    future.set_result(None)
    return future


def test_a_full_disk_is_no_reason_to_begin_anew(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is there needs no free space."""
    out = tmp_path / "out"
    kill_after(6, apply, model, out)
    room = type("Usage", (), {"free": 2 * 40_000 + 20_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    with pytest.raises(OutputError, match="not enough free disk space"):
        apply(model, tmp_path / "else", resume=True)
    assert resumed(apply, model, out)[0] == 2 and read_folder(out) == read_folder(model / "whole")


def test_a_link_is_no_folder_to_go_on_in(model: Path, tmp_path: Path) -> None:
    kill_after(5, apply, model, tmp_path / "out")
    there = unfinished(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    os.rename(there, tmp_path / "elsewhere/folder")
    (tmp_path / "elsewhere/folder/mine").write_text("mine")
    there.symlink_to("elsewhere/folder")
    assert resumed(apply, model, tmp_path / "out")[0] == SHARDS
    assert (tmp_path / "elsewhere/folder/mine").read_text() == "mine" and not (tmp_path / "out").is_symlink()


def test_in_place_of_an_old_one(model: Path, tmp_path: Path) -> None:
    """With force, as ever: the old folder is whole until the new one is."""
    out = tmp_path / "out"
    apply(model, out, pack=model / "other.dpk")
    old = read_folder(out)
    kill_after(4, apply, model, out, force=True)
    with pytest.raises(OutputError, match="exists"):
        apply(model, out, resume=True)
    kill_after(4, apply, model, out, force=True)
    assert read_folder(out) == old
    assert resumed(apply, model, out, force=True)[0] == SHARDS - 4
    assert read_folder(out) == read_folder(model / "whole")


def test_the_fullest_of_several_is_taken(model: Path, tmp_path: Path) -> None:
    """As older folders might lie there that could not be removed."""
    out = tmp_path / "out"
    kill_after(5, apply, model, out)
    few = shutil.copytree(unfinished(out), tmp_path / ".out.00000000.partial")
    lines = (few / JOURNAL).read_bytes().splitlines(keepends=True)
    (few / JOURNAL).write_bytes(b"".join(lines[:3]))
    assert resumed(apply, model, out)[0] == SHARDS - 5 and os.listdir(tmp_path) == ["out"]


def test_tensors_of_all_kinds(tmp_path: Path) -> None:
    """Digests that verifying has computed are those of the files: of types of two to eight bytes, without elements."""
    base = {"big": random_tensor(1, (110, 100), "bf16"), "none": random_tensor(2, (0, 3)), "one": random_tensor(3, ())}
    base |= {"ids": whole("i64", range(50)), "small": random_tensor(4, (7, 9), "f16"), "wide": random_tensor(5, (40, 3), "f64")}
    tuned = {name: tensor if name in ("ids", "none") else moved(tensor, 6) for name, tensor in base.items()}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned | {"new": random_tensor(8, (5, 5))})
    for name, recipe in (("exact", Recipe(exact=True)), ("lossy", Recipe(drop_rate=0.5))):
        deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / f"{name}.dpk", recipe=recipe)
        out, options = tmp_path / name / "out", {**SMALL, "max_shard_size": "1kB", "pack": tmp_path / f"{name}.dpk"}
        out.parent.mkdir()
        decoded = Decoded()
        apply(tmp_path, tmp_path / name / "whole", progress=decoded, **options)
        shards = len(list((tmp_path / name / "whole").glob("*.safetensors")))
        kill_after(shards - 2, apply, tmp_path, out, at=decoded.tensors, **options)
        _, report = resumed(apply, tmp_path, out, **options)
        assert any("were there, in files" in note for note in report.notes)
        assert read_folder(out) == read_folder(tmp_path / name / "whole")


@pytest.mark.parametrize("kind", ["f16", "f64"])
def test_the_digest_of_a_tensor_of_several_chunks(kind: str, tmp_path: Path) -> None:
    elements = np.arange(2 * CHUNK + 5).astype({"f16": "<u2", "f64": "<f8"}[kind])
    (tmp_path / "file").write_bytes(b"head" + elements.tobytes())
    shard = Shard("file", (NewTensor("x", BY_NAME[kind], elements.shape),))
    root = root_digest(kind, elements.shape, [chunk_digest(elements[start : start + CHUNK]) for start in range(0, len(elements), CHUNK)])
    said = file_digest(tmp_path / "file", shard, {"x": root})
    assert said == file_digest(tmp_path / "file", shard, {}) != file_digest(tmp_path / "file", shard, {"x": "0" * 32})


def test_one_file_has_nothing_to_go_on_with(model: Path, tmp_path: Path) -> None:
    decoded = Decoded()
    deltapack.apply(model / "base", model / "tuned.dpk", tmp_path / "out", resume=True, workers=1, progress=decoded)
    assert decoded.tensors == SHARDS and JOURNAL not in os.listdir(tmp_path / "out")


@pytest.mark.parametrize("out", ["x.safetensors", "s3://bucket/x"])
def test_what_cannot_be_resumed_is_refused(out: str, model: Path, tmp_path: Path) -> None:
    place = out if "//" in out else tmp_path / out
    with pytest.raises(RecipeError, match="resume is for folders of this machine"):
        deltapack.apply(model / "base", model / "tuned.dpk", place, resume=True)
    with pytest.raises(RecipeError, match="resume is for folders of this machine"):
        deltapack.merge(model / "base", [model / "tuned.dpk"], tmp_path / "x.dpk", resume=True)
    with pytest.raises(RecipeError, match="resume is for work on this machine"):
        deltapack.apply(model / "base", model / "tuned.dpk", tmp_path / "x", resume=True, engine="ray")
    assert os.listdir(tmp_path) == []


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_commands(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_after(5, apply, model, out)
    done = run("apply", model / "base", model / "tuned.dpk", "-o", out, "--max-shard-size", "45kB", "--resume")
    assert done.exit_code == 0 and "5 tensors were there, in files that a stopped run had finished" in done.output
    assert read_folder(out) == read_folder(model / "whole")
    kill_after(5, merge, model, tmp_path / "both")
    packs = (model / "tuned.dpk", model / "other.dpk")
    done = run("merge", model / "base", *packs, "-o", tmp_path / "both", "--weight", "0.5", "--max-shard-size", "45kB", "--resume")
    assert done.exit_code == 0 and "5 tensors were there, in files that a stopped run had finished" in done.output
    assert read_folder(tmp_path / "both") == read_folder(model / "merged")


@pytest.mark.parametrize("size", ["Infinity", "1e400", "true", "[]"])
def test_a_list_with_a_size_that_is_none(size: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_after(2, apply, model, out)
    journal = unfinished(out) / JOURNAL
    head, row, *rest = journal.read_text().splitlines()
    said = json.loads(row)
    journal.write_text("\n".join([head, row.replace(f'"size": {said["size"]}', f'"size": {size}'), *rest]) + "\n")
    apply(model, out, resume=True)
    assert read_folder(out) == read_folder(model / "whole")


def test_what_else_lies_in_an_unfinished_folder_goes(model: Path, tmp_path: Path) -> None:
    """Pipes are not waited for, folders do not stay, links are not followed."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    kill_after(2, apply, model, out)
    folder = unfinished(out)
    last = max(folder.glob("*.safetensors"))
    last.unlink()
    last.mkdir()
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_text("x")
    elsewhere.write_text("mine")
    (folder / f"{JOURNAL}.new").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe")
    apply(model, out, resume=True)
    assert read_folder(out) == read_folder(model / "whole") and not (out / "deep").exists()
    assert elsewhere.read_text() == "mine"
    kill_after(2, apply, model, tmp_path / "piped")
    journal = unfinished(tmp_path / "piped") / JOURNAL
    journal.unlink()
    os.mkfifo(journal)
    apply(model, tmp_path / "piped", resume=True)
    assert read_folder(tmp_path / "piped") == read_folder(model / "whole")
