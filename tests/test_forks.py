"""What was opened before a fork works after it, in the process that was forked: whoever held which lock, and whoever reads meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.web_server import web_server

import deltapack
from deltapack import forks
from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.files import open_to_read
from deltapack.sources.remote_path import RemotePath

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]


def in_child(check: Callable[[], bool]) -> int:
    """Fork while a thread holds every lock, and return how the child ended; it is killed where it waits."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        locks = list(forks._LOCKS)
        for lock in locks:
            lock.acquire()
        held.set()
        go_on.wait(60)
        for lock in locks:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        child = os.fork()
        if not child:
            code = 3
            try:
                signal.alarm(30)
                code = 0 if check() else 1
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        go_on.set()
        holder.join()


def tensors() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=(300, 200)).astype(np.float32) for name in ("a.weight", "b.weight")}


def test_checkpoints_and_packs(tmp_path: Path) -> None:
    base = tensors()
    tuned = {name: value + np.float32(0.01) for name, value in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    torch.save({name: torch.from_numpy(value).t() for name, value in base.items()}, tmp_path / "base.bin")
    recipes = {"low": deltapack.Recipe(budget=deltapack.Budget(bits=2.0)), "exact": deltapack.Recipe(exact=True)}
    for name, recipe in recipes.items():
        deltapack.compress(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / f"{name}.dpk", recipe=recipe)
    restored = {name: value.copy() for name, value in base.items()}
    with (
        open_checkpoint(tmp_path / "base.safetensors") as plain,
        open_checkpoint(tmp_path / "base.bin") as transposed,
        deltapack.open_pack(tmp_path / "low.dpk") as low,
        deltapack.open_pack(tmp_path / "exact.dpk") as exact,
    ):
        wanted = low["a.weight"].to_dense()

        def check() -> bool:
            exact.add_to(restored)
            same = [np.array_equal(plain.read(name), value.reshape(-1)) for name, value in base.items()]
            same += [np.array_equal(transposed.read(name), value.T.reshape(-1)) for name, value in base.items()]
            same += [np.array_equal(restored[name], value) for name, value in tuned.items()]
            plain.close()
            return all(same) and np.array_equal(low["a.weight"].to_dense(), wanted)

        assert in_child(check) == 0
        assert np.array_equal(plain.read("a.weight"), base["a.weight"].reshape(-1))  # closed there, not here
        reader = threading.Event()

        def read_on() -> None:
            while not reader.is_set():
                plain.read("a.weight")

        thread = threading.Thread(target=read_on)
        thread.start()
        try:
            assert in_child(check) == 0  # handles that are held while it is forked
        finally:
            reader.set()
            thread.join()


def test_a_file_of_another_machine(tmp_path: Path) -> None:
    """Threads that fetch, and connections, are not forked: the process opens its own."""
    data = np.random.default_rng(1).bytes(3 << 20)
    with web_server() as web:
        web.files["/w.safetensors"] = data
        file = open_to_read(RemotePath.of(f"{web.url}/w.safetensors"))
        assert file.read(0, 1000) == data[:1000]
        assert in_child(lambda: file.read(0, len(data)) == data) == 0
        assert file.read(1 << 20, 1 << 20) == data[1 << 20 : 2 << 20]
        file.close()


def test_locks_and_counts() -> None:
    lock, before = forks.forking_lock(), forks.FORKS[0]
    assert in_child(lambda: lock.acquire(timeout=5) and forks.FORKS[0] == before + 1) == 0
    assert forks.FORKS[0] == before and lock.acquire(timeout=5)
