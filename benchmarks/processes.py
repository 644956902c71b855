"""Commands and library calls in fresh processes, with their seconds and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["DELTAPACK", "CommandFailedError", "Run", "run_command", "run_verb"]

DELTAPACK = (sys.executable, "-m", "deltapack")
ROOT = Path(__file__).parents[1]
TAIL = 300


class CommandFailedError(RuntimeError):
    """A command that was to be measured could not be started or returned an error."""


@dataclass(frozen=True)
class Run:
    """Seconds and peak resident memory of a process; of several in turn, their sum and their maximum.

    Attributes:
        seconds: From start to end.
        peak_mb: Peak resident memory.
        output: What it printed.
        processor_seconds: User and system, of all its threads; 0 where they were not asked for.
    """

    seconds: float
    peak_mb: float
    output: str = ""
    processor_seconds: float = 0.0


def run_command(command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Run:
    """Run a command in a fresh process.

    Args:
        command: Program and arguments.
        env: Variables to add to the environment.
        cwd: Where to run it.

    Raises:
        CommandFailedError: It could not be started or failed.
    """
    words = list(map(str, command))
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {})
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "output"
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(log), *words]
        done = subprocess.run(launcher, capture_output=True, text=True, check=False, env=variables, cwd=cwd)
        output = log.read_text(errors="replace") if log.exists() else ""
    if done.returncode:
        raise CommandFailedError(f"{words[0]}: {(done.stderr.strip().splitlines() or ['did not start'])[-1]}")
    seconds, peak, code, processor = json.loads(done.stdout)
    if code:
        raise CommandFailedError(f"{Path(words[0]).name} ended with {code}: {' '.join(output.split())[-TAIL:]}")
    return Run(seconds, peak, output, processor)


def run_verb(verb: str, arguments: Mapping[str, Any]) -> Run:
    """Make one call of the library in a fresh process; the seconds are of the call alone, imports included.

    Raises:
        CommandFailedError: The call failed.
    """
    output = run_command((sys.executable, "-m", "benchmarks.child", json.dumps([verb, dict(arguments)]))).output
    peak, seconds = json.loads(output.strip().splitlines()[-1])
    return Run(seconds, peak, output)
