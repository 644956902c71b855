"""What the machine needs at least for the same bytes: copying memory, copying files, reading files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.verbs import clear
from benchmarks.timing import Candidate
from deltapack.checkpoint import open_checkpoint

__all__ = ["State", "copy_floor", "cp_floor", "read_files", "read_floor", "weight_files"]

State = Mapping[str, NDArray[np.uint16]]
READ_BYTES = 4 << 20
PART = 1 << 20
"""Elements that one thread copies at a time."""


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
