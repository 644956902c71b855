"""Commands on machines as they may be: streams that are closed or full, few files, few threads, little memory.

One process imports all that commands need and is forked for each of them, which takes a tenth of the time of a new one.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Case", "Ended", "run_all"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """A command and its machine.

    Attributes:
        arguments: What follows `deltapack`.
        folder: Where it runs.
        streams: What 0, 1 and 2 lead to where that is no file: `closed`, `gone` (a pipe that nobody reads), or a path.
        limits: By names of `resource`.
        variables: Of the environment, besides those of the test.
        umask: The umask.
        gone: Whether its folder is removed before it begins.
    """

    arguments: Sequence[str]
    folder: str
    streams: dict[int, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    umask: int | None = None
    gone: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command has ended; `out` and `err` are empty where their stream led elsewhere."""

    code: int
    out: str
    err: str


def run_all(cases: Sequence[Case], **variables: str) -> list[Ended]:
    """Run commands, one after the other, each in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DELTAPACK_LOOPS": "numpy", **variables}
    asked = json.dumps([asdict(case) for case in cases])
    done = subprocess.run([sys.executable, __file__], input=asked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Ended(**ended) for ended in json.loads(done.stdout)]


def _child(case: Case, out: int, err: int) -> None:
    """Become what the interpreter is when it starts a command so; never returns."""
    import resource
    import shutil
    import traceback

    code = 1
    try:
        os.chdir(case.folder)
        if case.gone:
            shutil.rmtree(case.folder)
        given = {int(number): where for number, where in case.streams.items()}  # JSON has made texts of them
        for number, usual in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
            where = given.get(number, "")
            if where == "closed":
                os.close(number)
            elif where == "gone":
                reading, writing = os.pipe()
                os.close(reading)
                os.dup2(writing, number)
                os.close(writing)
            else:
                os.dup2(os.open(where, os.O_RDWR) if where else usual, number)
        os.closerange(3, 256)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            raw = None if given.get(number) == "closed" else io.FileIO(number, "w" if number else "r", closefd=False)
            buffered = None if raw is None else io.BufferedWriter(raw) if number else io.BufferedReader(raw)
            text = None if buffered is None else io.TextIOWrapper(buffered, errors="backslashreplace" if number == 2 else "strict")
            setattr(sys, name, text)
        os.environ.update(case.variables)
        if case.umask is not None:
            os.umask(case.umask)
        for name, limit in case.limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        sys.argv = ["deltapack", *case.arguments]
        from deltapack.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            code = 120  # as Python ends that cannot write its last words
        if sys.stderr is not None:
            sys.stderr.flush()
    except BaseException:
        code = 99
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _serve() -> None:
    """Import commands, and run those that standard input lists."""
    import importlib
    import tempfile

    from deltapack.cli.main import COMMANDS

    for name in COMMANDS:
        importlib.import_module(f"deltapack.cli.commands.{name.replace('-', '_')}")
    for name in ("packing", "restoring.applying", "restoring.verifying", "merging.merge", "packs", "analysis", "exporting", "publishing"):
        importlib.import_module(f"deltapack.{name}")
    ended = []
    for case in json.load(sys.stdin):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                _child(Case(**case), out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
        ended.append({"code": code, "out": said[0], "err": said[1]})
    print(json.dumps(ended))


if __name__ == "__main__":
    _serve()
