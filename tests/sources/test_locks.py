"""Locks end with their process, say whose they are, and are never two runs' at a time; folders of killed processes go."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deltapack.errors import OutputError
from deltapack.format.atomic import atomic_file, claimed, sweep, temporary_sibling
from deltapack.sources import locks
from deltapack.sources.locks import Lock, scratch, sweep_scratch
from deltapack.sources.owners import Owner, owner_here, owner_in

HOLDS = """
import sys, time
from pathlib import Path
from deltapack.format.atomic import atomic_file
from deltapack.sources.locks import scratch
out = Path(sys.argv[1])
with atomic_file(out, force=True) as file, scratch(".work-", out.parent) as folder:
    file.write(b"new")
    (folder / "big").write_bytes(b"big")
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_run(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing an output."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_says_who_writes_and_touches_nothing(tmp_path: Path) -> None:
    with another_run(tmp_path / "out") as process:
        before = sorted(path.name for path in tmp_path.iterdir())
        told = (
            rf"another run writes this output: found process {process.pid} on {socket.gethostname()}, begun \d+ seconds ago\. Wait for it"
        )
        with pytest.raises(OutputError, match=told), atomic_file(tmp_path / "out", force=True):
            raise AssertionError("never begun")
        sweep(tmp_path / "out")
        sweep_scratch(".work-", tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before and len(before) == 3


def test_what_a_killed_run_left_goes_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with another_run(tmp_path / "out") as process:
        left = [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    with caplog.at_level(logging.WARNING, "deltapack"), atomic_file(tmp_path / "out", force=False) as file:
        file.write(b"ours")
    said = f"removed what a killed run (process {process.pid} on {socket.gethostname()}, begun "
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(said) and caplog.messages[0].endswith(f": {left[0]}")
    sweep_scratch(".work-", tmp_path)
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out").read_bytes() == b"ours"


def test_a_run_that_is_refused_sweeps_too(tmp_path: Path) -> None:
    with another_run(tmp_path / "out"):
        pass
    (tmp_path / "out").write_bytes(b"there")
    with pytest.raises(OutputError, match="exists"), atomic_file(tmp_path / "out", force=False):
        raise AssertionError("never begun")
    sweep_scratch(".work-", tmp_path)
    assert os.listdir(tmp_path) == ["out"]


def test_threads_of_one_process_are_two_runs(tmp_path: Path) -> None:
    got = list[bool]()
    with claimed(tmp_path / "out"):
        thread = threading.Thread(target=lambda: got.append(Lock(tmp_path / ".out.deltapack.lock").take()))
        thread.start()
        thread.join()
    assert got == [False] and os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_forked_child_does_not_keep_a_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.take()
    child = os.fork()
    if child == 0:
        time.sleep(600)
    try:
        lock.let_go()
        assert not (tmp_path / "lock").exists() and Lock(tmp_path / "lock").take()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_many_takers_are_one_at_a_time(tmp_path: Path) -> None:
    """The file comes and goes all the time: whoever opens one that is gone again has nothing."""
    inside, most, times = 0, 0, 0
    guard = threading.Lock()

    def run() -> None:
        nonlocal inside, most, times
        for _ in range(100):
            lock = Lock(tmp_path / "lock")
            if lock.take():
                with guard:
                    inside, most, times = inside + 1, max(most, inside + 1), times + 1
                with guard:
                    inside -= 1
            lock.let_go()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and times and os.listdir(tmp_path) == []


def test_owners_are_told_apart() -> None:
    here = owner_here()
    assert not here.is_gone() and here.pid == os.getpid()
    assert not replace(here, host="elsewhere").is_gone()  # nobody can say
    if here.started:
        assert replace(here, started=here.started + 1).is_gone()  # another process of this number
    if here.boot:
        assert replace(here, boot="before").is_gone()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert replace(here, pid=gone.pid).is_gone()
    ages = [str(replace(here, since=time.time() - seconds)).rpartition("begun ")[2] for seconds in (5, 300, 50_000, 500_000)]
    assert ages == ["5 seconds ago", "5 minutes ago", "13 hours ago", "5 days ago"]


OWNER = vars(owner_here())


@pytest.mark.parametrize(
    "said",
    [
        *("", "[]", "{}", "{", "[" * 100_000, '{"pid": true}', json.dumps({**OWNER, "host": 1})),
        *(json.dumps({**OWNER, "since": since}) for since in (10**400, -1, math.nan, math.inf, -math.inf)),
    ],
)
def test_a_lock_that_does_not_say_whose_it_is(said: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(said)
    with (tmp_path / "lock").open("rb") as file:
        assert owner_in(file.fileno()) is None
    assert Lock(tmp_path / "lock").take()


def test_names_of_machines_are_printable(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(replace(owner_here(), host="a\x1b[31m").to_bytes())
    with (tmp_path / "lock").open("rb") as file:
        owner = owner_in(file.fileno())
    assert owner is not None and owner.host == "a[31m"


@pytest.mark.parametrize("whose", ["dead", "living", "elsewhere", "nobody"])
def test_file_systems_without_locks(whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the file says whose it is: of a process that has surely ended it is taken, of others never."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owners: dict[str, Owner | None] = {"dead": replace(owner_here(), pid=dead.pid), "living": owner_here(), "nobody": None}
    owner = owners.get(whose, replace(owner_here(), host="elsewhere"))
    temporary_sibling(tmp_path / "out").write_bytes(b"unfinished")
    (tmp_path / ".out.deltapack.lock").write_bytes(b"" if owner is None else owner.to_bytes())
    if whose == "dead":
        with claimed(tmp_path / "out"):
            assert os.listdir(tmp_path) == [".out.deltapack.lock"]
        assert os.listdir(tmp_path) == []
    else:
        with (
            pytest.raises(OutputError, match=r"another run writes.*If nothing writes there, remove .*\.out\.deltapack\.lock"),
            claimed(tmp_path / "out"),
        ):
            raise AssertionError("not ours")
        assert len(os.listdir(tmp_path)) == 2
    with claimed(tmp_path / "new"), pytest.raises(OutputError, match="another run"), claimed(tmp_path / "new"):
        raise AssertionError("twice")
    assert not (tmp_path / ".new.deltapack.lock").exists()


def test_nobody_is_told_to_remove_a_lock_of_the_system(tmp_path: Path) -> None:
    """It ends with its process; who removes the file lets two runs write."""
    pytest.importorskip("fcntl")
    with claimed(tmp_path / "out"), pytest.raises(OutputError, match="another run writes") as told, claimed(tmp_path / "out"):
        raise AssertionError("twice")
    assert told.value.hint == "Wait for it, or choose another output."


def test_a_lock_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / ".out.deltapack.lock").symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match="cannot write"), claimed(tmp_path / "out"):
        raise AssertionError("through a link")
    (tmp_path / ".out.deltapack.lock").unlink()
    os.mkfifo(tmp_path / ".out.deltapack.lock")
    with pytest.raises(OutputError, match="is no file"), claimed(tmp_path / "out"):
        raise AssertionError("a pipe")
    assert (tmp_path / "target").read_bytes() == b"theirs"


def test_scratch_folders_of_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with scratch("work-", tmp_path) as first, scratch("work-", tmp_path) as second:
        (first / "deep").mkdir()
        (first / "deep" / "file").write_bytes(b"x")
        assert first != second
    assert os.listdir(tmp_path) == []
    for name, mode in (("work-abcdefgh", 0o755), ("work-full1234", 0o700), ("work-project", 0o700), ("other-abcdefgh", 0o700)):
        (tmp_path / name).mkdir(mode=mode)
        (tmp_path / name).chmod(mode)
    (tmp_path / "work-full1234" / "thesis.tex").write_bytes(b"years")
    (tmp_path / "work-12345678").symlink_to(tmp_path / "work-full1234")
    (tmp_path / "work-empty123").mkdir(mode=0o700)  # killed before it was locked
    with scratch("work-", tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(["work-abcdefgh", "work-full1234", "work-project", "other-abcdefgh", "work-12345678"])
    assert (tmp_path / "work-full1234" / "thesis.tex").exists() and caplog.messages == [
        f"removed what killed processes had left in {tmp_path}: work-empty123"
    ]


def test_a_scratch_folder_that_is_swept_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, swept = Lock.take, list[Path]()

    def late(lock: Lock) -> bool:
        if not swept:
            swept.append(lock.path.parent)
            sweep_scratch("work-", tmp_path)
        return take(lock)

    monkeypatch.setattr(locks.Lock, "take", late)
    with scratch("work-", tmp_path) as folder:
        assert folder.is_dir() and swept and folder != swept[0] and not swept[0].exists()
    assert os.listdir(tmp_path) == []
