"""Start-up: the first command after an installation, later ones, and how much of a short command is Python itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.processes import DELTAPACK, CommandFailedError, run_command
from benchmarks.results import Cell, Table, progress
from benchmarks.speed.inputs import DEFAULT, Bench
from benchmarks.speed.verbs import Verb, command_candidate
from benchmarks.timing import Rounds, Sample, interleave, ratio

__all__ = ["LIMIT_SECONDS", "first_run", "measure_startup", "short_commands"]

LIMIT_SECONDS = 0.3
PYTHON = "python -c pass"


def measure_startup(small: Bench, rounds: Rounds) -> tuple[Table, Table]:
    """Time commands on a small model, where the work itself is little."""
    verbs = small.compress(DEFAULT, 2), small.apply(DEFAULT, 2), small.merge(2, 2), small.verify(2, base=True)
    headers = ("command", "first run s", "second run s", "compiling s", "first run peak RSS MB", "second run peak RSS MB")
    caption = f"First run after an installation, {small.family.nbytes / 1e9:.2f} GB"
    return short_commands(small, rounds), Table(caption, headers, tuple(map(first_run, verbs)))


def short_commands(small: Bench, rounds: Rounds) -> Table:
    """Time commands that do next to nothing, in turns with an empty Python program."""
    headers = ("command", "seconds", "min..max", "runs", "peak RSS MB", f"x {PYTHON}", f"at most {LIMIT_SECONDS} s")
    return Table("Short commands", headers, tuple(_short_rows(small, rounds)))


def first_run(verb: Verb) -> tuple[Cell, ...]:
    """Run a command twice with a compiler cache of its own, empty at first, as if it were the first command ever."""
    progress(f"first run: {verb.name}")
    runs = []
    with TemporaryDirectory() as home:
        env = {"NUMBA_CACHE_DIR": str(Path(home) / "numba"), "HOME": home, "XDG_CACHE_HOME": str(Path(home) / "cache")}
        for _ in range(2):
            verb.prepare()
            try:
                runs.append(run_command([*DELTAPACK, *verb.words()], env))
            except CommandFailedError as error:
                return verb.name, f"none: {error}", None, None, None, None
    first, second = runs
    return verb.name, first.seconds, second.seconds, first.seconds - second.seconds, first.peak_mb, second.peak_mb


def _short_rows(small: Bench, rounds: Rounds) -> Iterator[tuple[Cell, ...]]:
    peaks: dict[str, float] = {}
    commands = {
        PYTHON: [sys.executable, "-c", "pass"],
        "deltapack --help": [*DELTAPACK, "--help"],
        "deltapack inspect": [*DELTAPACK, "inspect", str(small.pack(DEFAULT))],
    }
    samples = interleave([command_candidate(name, [words], peaks, None) for name, words in commands.items()], rounds)
    for name, sample in samples.items():
        yield (
            name, sample.median if sample.seconds else f"none: {sample.reason}", sample.spread, len(sample.seconds), peaks.get(name),
            ratio(samples, name, PYTHON), _judged(name, sample),
        )  # fmt: skip


def _judged(name: str, sample: Sample) -> str | None:
    if name == PYTHON:
        return None
    return "pass" if sample.median is not None and sample.median <= LIMIT_SECONDS else "FAIL"
