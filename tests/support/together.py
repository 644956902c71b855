"""Things that run at once: threads that are watched, and processes that begin at the same moment."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from support.builders import ROOT

__all__ = ["Racers", "at_once", "racers"]

_LONGEST = 300


def at_once(works: Sequence[Callable[[], Any]], longest: float = _LONGEST) -> list[Any]:
    """Call functions in a thread each, which begin together; return what each returned or raised.

    Where they do not end, the test fails and shows where every thread stands.
    """
    results: list[Any] = [None] * len(works)
    begin = threading.Barrier(len(works))

    def call(number: int) -> None:
        begin.wait()
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + longest
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            pytest.fail(f"threads do not end:\n{file.read()}")
    return results


_RACER = """
import json, sys, time, faulthandler
import deltapack
faulthandler.enable()
print("ready", flush=True)
for line in sys.stdin:
    at, name, args, options = json.loads(line)
    faulthandler.dump_traceback_later(200, exit=True)
    while time.time() < at:
        pass
    try:
        getattr(deltapack, name)(*args, **options)
        said = "done"
    except deltapack.DeltapackError as error:
        said = f"{type(error).__name__}: {error}"
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(said), flush=True)
"""


class Racers:
    """Processes that wait to call functions of the package at the same moment."""

    def __init__(self, count: int) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._processes = [
            subprocess.Popen([sys.executable, "-c", _RACER], env={**os.environ, "PYTHONPATH": paths}, **pipes) for _ in range(count)
        ]
        assert [self._said(process) for process in self._processes] == ["ready"] * count

    def __len__(self) -> int:
        return len(self._processes)

    @staticmethod
    def _said(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def run(self, name: str, calls: Sequence[tuple[list[Any], dict[str, Any]]]) -> list[str]:
        """Call a function of the package in each process at once; return "done" or the error of each."""
        at = time.time() + 0.05
        for process, (args, options) in zip(self._processes, calls, strict=True):
            assert process.stdin is not None
            process.stdin.write(
                json.dumps([at, name, [[str(x) for x in a] if isinstance(a, list) else str(a) for a in args], options]) + "\n"
            )
            process.stdin.flush()
        return [json.loads(self._said(process)) for process in self._processes]

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait(60)
            process.stdout.close()


@contextmanager
def racers(count: int) -> Iterator[Racers]:
    """Start processes, and end them."""
    started = Racers(count)
    try:
        yield started
    finally:
        started.close()
