"""Runs commands in forked children, in which files fail, what is done is recorded, or which are sent a signal.

The nursery is a process of its own without threads: it imports once, and forks a child for each line that it reads.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.file_layer import Fault, Layer

__all__ = ["HANGS", "Nursery", "Outcome", "nursery", "traced"]

HANGS, UNCAUGHT = -signal.SIGALRM, 99
"""Exit codes: of a child that does not end, and of one that ends with an exception that nobody caught."""
_SECONDS = 60
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: Its exit code; negative, the signal that killed it.
        said: What it printed.
        bare: An error of the system that reached the command line as it was, none of ours.
        calls: The calls of files that it made, in order, if they were counted.
        failed: Those that failed as asked.
        seconds: How long it took.
    """

    code: int
    said: str
    bare: str
    calls: tuple[str, ...]
    failed: tuple[str, ...]
    seconds: float


class Nursery:
    """The process, seen from the tests."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(
        self,
        arguments: list[str],
        root: Path | None = None,
        fault: Fault | None = None,
        record: Path | None = None,
        kill: tuple[int, float] | None = None,
    ) -> Outcome:
        """Run the command line in a child.

        Args:
            arguments: Its arguments.
            root: The folder whose files are looked at; none counts or fails unless given.
            fault: What fails.
            record: Where to write what was done to files.
            kill: A signal, and the seconds after which it is sent.
        """
        asked: dict[str, Any] = {
            "arguments": arguments,
            "root": None if root is None else str(root),
            "kill": kill,
            "told": str(self._folder),
        }
        asked |= {"fault": None if fault is None else vars(fault), "record": None if record is None else str(record)}
        ended = self._ask(asked)
        told = self._folder / "told.json"
        said: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {"bare": "", "calls": [], "failed": []}
        printed = (self._folder / "printed").read_text(errors="replace")
        return Outcome(ended["code"], printed, said["bare"], tuple(said["calls"]), tuple(said["failed"]), ended["seconds"])

    def warm(self, arguments: list[str]) -> None:
        """Run a command once in the nursery itself, so that its modules are there for all children."""
        self._ask({"arguments": arguments, "warm": True})

    def _ask(self, asked: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"warm": False, **asked}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def nursery(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Nursery]:
    """Start one, whose own files are in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DELTAPACK_LOOPS": "numpy", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "from support.nursery import main; main()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **own, **(environment or {})}) as process:
        yield Nursery(process, folder)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    """Be the nursery."""
    import deltapack.cli.main

    assert deltapack.cli.main
    with contextlib.suppress(ImportError):  # a warm command would leave connections, which children must not share
        from huggingface_hub import file_download, hf_api

        assert file_download and hf_api
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a child that has not begun is none of the command's
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["warm"]:
            _warm(asked["arguments"])
            print(json.dumps({"code": 0, "seconds": 0.0}), flush=True)
            continue
        (Path(asked["told"]) / "told.json").unlink(missing_ok=True)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_child(asked)
        if asked["kill"] is not None:
            sign, wait = asked["kill"]
            time.sleep(wait)
            os.kill(child, sign)  # it has not been waited for, so the number is still its own
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun}), flush=True)


def _warm(arguments: list[str]) -> None:
    """Run a command here, so that children have nothing left to import."""
    from deltapack.cli.main import cli

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        cli(arguments, prog_name="deltapack")


def _be_child(asked: Mapping[str, Any]) -> None:
    code, layer, bare = UNCAUGHT, None, [""]
    told = Path(asked["told"])
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        _print_to(told / "printed")
        events: list[Any] = []
        code, layer = traced(asked, events, bare)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if layer is not None:
            layer.root = "/nowhere"  # what is told now is none of the command's
            said = {"bare": bare[0], "calls": layer.calls, "failed": layer.failed}
            handle = os.open(told / "told.json", os.O_WRONLY | os.O_CREAT, 0o666)
            os.write(handle, json.dumps(said).encode())
            if asked["record"] is not None:
                Path(asked["record"]).write_bytes(pickle.dumps(events[0]))
        os._exit(code)


def _print_to(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True) for number in (1, 2))


def traced(asked: Mapping[str, Any], events: list[Any], bare: list[str]) -> tuple[int, Layer]:
    """Run the command line as is asked, in this process, which must end soon; return its exit code, and what was counted."""
    from deltapack.cli import main as command

    def found(error: OSError) -> None:
        bare[0] = "".join(traceback.format_exception(error))
        original(error)

    original, command._print_os_error = command._print_os_error, found
    layer = Layer(os.path.realpath(asked["root"] or "/nowhere"), None if asked["fault"] is None else Fault(**asked["fault"]))
    if asked["root"] is not None:
        tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(layer.root, "tmp")
        if asked["record"] is not None:
            from support.crash_states import History, recorder

            events.append(History())
            layer.told = recorder(events[0], layer, Path(layer.root, "work"))
        layer.install()
    sys.argv = ["deltapack", *asked["arguments"]]
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        command.main()
    except SystemExit as ended:
        return int(ended.code or 0), layer
    except KeyboardInterrupt:  # when it had ended, or before it began
        return 130, layer
    except BaseException:
        traceback.print_exc()
        return UNCAUGHT, layer
    return 0, layer
