"""Everything that can be timed: calls of deltapack, here and as commands, applying in memory, and the floors of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deltapack
from benchmarks.child import apply_once, call_library, read_state
from benchmarks.processes import DELTAPACK, run_command, run_verb
from benchmarks.timing import Candidate, Peaks
from deltapack.checkpoint import open_checkpoint
from deltapack.packs.patching import LoadedPack

__all__ = [
    "LOADED", "WAYS", "WORKERS", "State", "Verb", "Way", "clear", "command_candidate", "copy_floor", "cp_floor", "in_memory",
    "in_memory_name", "peaks_above_state", "read_files", "read_floor", "two_states", "weight_files",
]  # fmt: skip

State = Mapping[str, NDArray[np.uint16]]
WORKERS = (1, 2)
READ_BYTES = 4 << 20
PART = 1 << 20
"""Elements that one thread copies at a time."""


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


@dataclass(frozen=True)
class Way:
    """How a pack is applied in memory.

    Attributes:
        label: What it is called.
        load: Whether the streams of the pack are in memory before, as a server that switches packs would have them.
        verify: Whether the digests of base and result are checked.
    """

    label: str
    load: bool
    verify: bool


LOADED = Way("streams in memory", load=True, verify=False)
WAYS = (LOADED, Way("from the file", load=False, verify=False), Way("from the file with digests", load=False, verify=True))


def two_states(base: Path) -> tuple[State, State]:
    """Return the tensors of a base, and as much room to work in."""
    state = read_state(base)
    return state, {name: np.empty_like(tensor) for name, tensor in state.items()}


def in_memory_name(workers: int, way: Way = LOADED) -> str:
    """Name of a candidate that applies in memory."""
    return f"apply in memory, {way.label}, {workers} worker{'s' if workers > 1 else ''}"


def in_memory(pack: Path, base: State, state: State, prefix: str = "") -> list[Candidate]:
    """Return all ways with 1 and 2 workers. `state` starts from `base` in every run; copying it is not timed."""
    return [_in_memory(pack, base, state, prefix, way, workers) for way in WAYS for workers in WORKERS]


def _in_memory(pack: Path, base: State, state: State, prefix: str, way: Way, workers: int) -> Candidate:
    streams = _streams(pack) if way.load else None

    def reset() -> None:
        for name, tensor in base.items():
            np.copyto(state[name], tensor)

    def call() -> None:
        if streams is None:
            apply_once(pack, state, workers, load=way.load, verify=way.verify)
        else:
            streams.add_to(dict(state), weight=1.0, verify=way.verify, workers=workers)

    return Candidate(prefix + in_memory_name(workers, way), call, reset)


@lru_cache(maxsize=1)
def _streams(pack: Path) -> LoadedPack:
    """Return the streams of a pack, which stays open; several candidates share them."""
    return deltapack.open_pack(pack).load()


def peaks_above_state(base: Path, pack: Path, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield what applying with 2 workers needs beside the weights, by name: peak of a fresh process less its peak when it had them."""
    for way in WAYS:
        arguments = {"base": str(base), "pack": str(pack), "workers": 2, "load": way.load, "verify": way.verify}
        yield prefix + in_memory_name(2, way), run_verb("add_to", arguments).peak_mb


def copy_floor(source: State, target: State, threads: int) -> Candidate:
    """Copy every tensor of `source` into `target`; which thereby becomes the base again."""
    pairs = [(target[name].reshape(-1), tensor.reshape(-1)) for name, tensor in source.items()]
    name = f"copy memory, {threads} thread{'s' if threads > 1 else ''}"
    if threads == 1:
        return Candidate(name, lambda: _copy(pairs))
    parts = [(to[at : at + PART], of[at : at + PART]) for to, of in pairs for at in range(0, len(of), PART)]
    shares, pool = [parts[number::threads] for number in range(threads)], ThreadPoolExecutor(threads)
    return Candidate(name, lambda: list(pool.map(_copy, shares)))


def _copy(pairs: Sequence[tuple[NDArray[np.uint16], NDArray[np.uint16]]]) -> None:
    for to, of in pairs:
        np.copyto(to, of)


def cp_floor(folder: Path, scratch: Path, *, sync: bool) -> Candidate:
    """Copy a folder with cp; with `sync`, until every file is on the disk, as deltapack's writers do."""
    out = scratch / "cp"

    def copy() -> None:
        subprocess.run(["cp", "-r", str(folder), str(out)], check=True)
        for path in sorted(out.rglob("*")) if sync else ():
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    return Candidate("cp + sync" if sync else "cp", copy, lambda: clear(out))


def read_floor(folders: Sequence[Path]) -> Candidate:
    """Read all weight files into one reused buffer of 4 MiB."""
    paths = [path for folder in folders for path in weight_files(folder)]
    return Candidate("read files", lambda: read_files(paths))


def read_files(paths: Sequence[Path]) -> None:
    """Read files; afterwards they are in the page cache."""
    buffer = bytearray(READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder."""
    with open_checkpoint(folder) as opened:
        return opened.weight_paths()
