"""The verbs of deltapack as things to time: in this process, in a fresh one, and as commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import call_library
from benchmarks.processes import DELTAPACK, run_command, run_verb
from benchmarks.timing import Candidate

__all__ = ["Peaks", "Verb", "clear", "command_candidate"]

Peaks = MutableMapping[str, float]
"""Peak memory in MB by the name of what was run."""


@dataclass(frozen=True)
class Verb:
    """One call of the library.

    Attributes:
        name: What it is called in the result; unique in its group.
        verb: Name of the function.
        arguments: Its arguments, as JSON values.
    """

    name: str
    verb: str
    arguments: dict[str, Any]

    @property
    def out(self) -> Path | None:
        """What it writes."""
        return Path(self.arguments["out"]) if "out" in self.arguments else None

    def call(self) -> None:
        """Make the call in this process."""
        call_library(self.verb, self.arguments)

    def prepare(self) -> None:
        """Remove what an earlier run wrote."""
        if self.out is not None:
            clear(self.out)

    def candidate(self) -> Candidate:
        """Return it for timing in this process."""
        return Candidate(self.name, self.call, self.prepare)

    def peak_mb(self) -> float:
        """Return the peak memory of a fresh process that makes this call alone."""
        self.prepare()
        return run_verb(self.verb, self.arguments).peak_mb

    def command(self, peaks: Peaks) -> Candidate:
        """Return the same as a command in a fresh process, from start to end."""
        return command_candidate(f"{self.name}, command", [[*DELTAPACK, *self.words()]], peaks, self.out)

    def words(self) -> list[str]:
        """Return the words of the command that makes this call."""
        given = dict(self.arguments)
        places = ("pack",) if self.verb in ("verify", "inspect") else ("base", "finetuned", "pack")
        words = [self.verb, *(str(given.pop(key)) for key in places if key in given)]
        words += given.pop("packs", [])
        for weight in given.pop("weights", []):
            words += ["--weight", str(weight)]
        for key, value in {**given.pop("recipe", {}), **given}.items():
            words += [f"--{key.replace('_', '-')}", str(value)]
        return [*words, "--quiet"]


def command_candidate(
    name: str, commands: Sequence[Sequence[str | Path]], peaks: Peaks, out: Path | None, env: Mapping[str, str] | None = None
) -> Candidate:
    """Return commands, run one after the other in fresh processes, as one thing to time.

    Args:
        name: Its name.
        commands: Programs and arguments.
        peaks: Where its peak memory goes.
        out: What is removed before each run.
        env: Variables to add to the environment.
    """

    def run() -> float:
        runs = [run_command(command, env) for command in commands]
        peaks[name] = max(peaks.get(name, 0.0), *(run.peak_mb for run in runs))
        return sum(run.seconds for run in runs)

    return Candidate(name, run, lambda: clear(out) if out is not None else None)


def clear(out: Path) -> None:
    """Remove a file or folder, and wait until the disk has nothing left to do."""
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    os.sync()
