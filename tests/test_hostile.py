"""Full disks and files that may not grow: a clear error and nothing half-written, or the right result."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builders import ROOT, leftovers, moved, random_tensor, read_folder, write_folder

import deltapack
from deltapack.errors import OutputError
from deltapack.format import placing
from deltapack.format.writer import PackWriter


def act_on(verb: str, folder: Path, out: Path, **options: Any) -> None:
    """Run a use case on the folders of `model`."""
    if verb == "compress":
        deltapack.compress(folder / "base", folder / "tuned", out, **options)
    elif verb == "apply":
        deltapack.apply(folder / "base", folder / "pack.dpk", out, **options)
    else:
        deltapack.merge(folder / "base", [folder / "pack.dpk", folder / "pack.dpk"], out, weights=[0.5], **options)


VERBS = {"compress": "out.dpk", "apply": "out", "apply to a file": "out.safetensors", "merge": "out", "merge packs": "out.dpk"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a fine-tune of 600 kB and their pack of 300 kB."""
    folder = tmp_path_factory.mktemp("model")
    base = {f"{number}": random_tensor(number, (300, 100)) for number in range(5)}
    write_folder(folder / "base", base)
    write_folder(folder / "tuned", {name: moved(tensor, 7) for name, tensor in base.items()}, {"tokenizer.json": "x" * 9999})
    deltapack.compress(folder / "base", folder / "tuned", folder / "pack.dpk", recipe=deltapack.Recipe(drop_rate=0.5, values="bf16"))
    return folder


def failing(call: Callable[..., Any], number: int, code: int) -> Callable[..., Any]:
    """The function, failing from its call of that number on."""
    calls: Iterator[int] = iter(range(1 << 60))

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= number:
            raise OSError(code, os.strerror(code))
        return call(*args, **kwargs)

    return fail


WRITES = {
    "compress": {"ftruncate": 1, "fsync": 2, "_renameat2": 1},
    "apply": {"ftruncate": 5, "pwrite": 9, "fsync": 7, "_renameat2": 1},
    "apply to a file": {"ftruncate": 2, "pwrite": 6, "fsync": 2, "_renameat2": 1},
    "merge": {"ftruncate": 6, "pwrite": 10, "fsync": 8, "_renameat2": 1},
    "merge packs": {"ftruncate": 1, "fsync": 2, "_renameat2": 1},
}
"""The calls by which each verb writes: `fsync` of each file and folder, `ftruncate` of each weight file and of the lock, one name given."""
HOLDERS = {"_renameat2": placing}


def calls_of(verb: str, model: Path, out: Path) -> dict[str, int]:
    """How often a verb makes each call of `WRITES`; leaves the output there."""
    counts: dict[str, int] = {}

    def counting(name: str) -> Callable[..., Any]:
        call = getattr(HOLDERS.get(name, os), name)

        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return call(*args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for name in set().union(*WRITES.values()):
            patch.setattr(HOLDERS.get(name, os), name, counting(name))
        act_on(verb.split()[0], model, out, force=True)
    return counts


@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("verb", VERBS)
def test_the_system_refuses_to_write(verb: str, code: int, old: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / VERBS[verb]

    def clear() -> None:
        if not old and out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()

    if old:
        act_on(verb.split()[0], model, out)
    counts = calls_of(verb, model, out)
    complete = read_folder(tmp_path)
    assert counts == WRITES[verb]
    clear()
    before = read_folder(tmp_path)
    for name, count in counts.items():
        for number in {0, 1, count // 2, count - 1} & {*range(count)}:
            with monkeypatch.context() as patch:
                holder = HOLDERS.get(name, os)
                patch.setattr(holder, name, failing(getattr(holder, name), number, code))
                with pytest.raises(OutputError) as caught:
                    act_on(verb.split()[0], model, out, force=True)
            assert str(out) in str(caught.value) and os.strerror(code) in str(caught.value)
            # The last thing that can fail is to make the rename durable: the new output is in place by then.
            durable = name == "fsync" and number == count - 1
            assert read_folder(tmp_path) == (complete if durable else before), (name, number)
            assert not leftovers(tmp_path)
            clear()


def test_a_pack_hits_the_end_of_the_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("compress", "merge packs"):
        for number in range(0, 60, 3):
            with monkeypatch.context() as patch:
                patch.setattr(PackWriter, "_write", failing(PackWriter._write, number, errno.ENOSPC))
                try:
                    act_on(verb.split()[0], model, tmp_path / "out.dpk")
                except OutputError as error:
                    assert "The disk is full" in str(error)
                    assert not list(tmp_path.iterdir())
                else:
                    assert number > 10
                    (tmp_path / "out.dpk").unlink()


LIMITED = """
import json, resource, signal, sys
from pathlib import Path
import deltapack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, target = Path(sys.argv[1]), Path(sys.argv[2])
for verb, name in json.loads(sys.argv[3]).items():
    for limit in (0, 10_000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            if verb == "compress":
                recipe = deltapack.Recipe(drop_rate=0.5, values="bf16")
                deltapack.compress(folder / "base", folder / "tuned", target / name, recipe=recipe)
            elif verb.startswith("apply"):
                deltapack.apply(folder / "base", folder / "pack.dpk", target / name)
            else:
                packs = [folder / "pack.dpk", folder / "pack.dpk"]
                deltapack.merge(folder / "base", packs, target / name, weights=[0.5])
        except deltapack.errors.OutputError as error:
            assert name in str(error) and "cannot write" in str(error), error
        else:
            raise AssertionError((verb, limit))
        assert not list(target.iterdir()), (verb, limit)
print("done")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system cannot limit the size of files")
def test_a_file_grows_too_large(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(model), str(tmp_path), json.dumps(VERBS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_too_little_space_is_noticed_before_work_begins(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    calls: list[int] = []
    for verb in ("apply", "merge"):
        with pytest.raises(OutputError, match="not enough free disk space"):
            act_on(verb, model, tmp_path / "out", progress=lambda done, total: calls.append(done))
    assert not calls and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_may_not_be_written(verb: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError):
        act_on(verb.split()[0], model, tmp_path / "locked" / VERBS[verb])
