"""Apply a pack to weights in memory: straight from its file with and without digests, and from its streams held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deltapack
from benchmarks.processes import run_verb
from benchmarks.speed.floors import State
from benchmarks.timing import Candidate
from deltapack.checkpoint import open_checkpoint
from deltapack.packs.patching import LoadedPack

__all__ = ["LOADED", "WAYS", "WORKERS", "Way", "apply_once", "candidates", "name_of", "peaks_above_state", "read_state"]


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
WORKERS = (1, 2)


def read_state(base: Path) -> dict[str, NDArray[Any]]:
    """Return every tensor of a checkpoint in its shape and storage type (bf16 as uint16)."""
    with open_checkpoint(base) as opened:
        return {name: opened.read(name).reshape(info.shape) for name, info in opened.tensors.items()}


def name_of(workers: int, way: Way = LOADED) -> str:
    """Name of a candidate."""
    return f"apply in memory, {way.label}, {workers} worker{'s' if workers > 1 else ''}"


def candidates(pack: Path, base: State, state: State, prefix: str = "") -> list[Candidate]:
    """Return all ways with 1 and 2 workers. `state` starts from `base` in every run; copying it is not timed."""
    return [_candidate(pack, base, state, prefix, way, workers) for way in WAYS for workers in WORKERS]


def _candidate(pack: Path, base: State, state: State, prefix: str, way: Way, workers: int) -> Candidate:
    streams = _streams(pack) if way.load else None

    def reset() -> None:
        for name, tensor in base.items():
            np.copyto(state[name], tensor)

    def call() -> None:
        if streams is None:
            apply_once(pack, state, workers, way)
        else:
            streams.add_to(dict(state), weight=1.0, verify=way.verify, workers=workers)

    return Candidate(prefix + name_of(workers, way), call, reset)


@lru_cache(maxsize=1)
def _streams(pack: Path) -> LoadedPack:
    """Return the streams of a pack, which stays open; several candidates share them."""
    return deltapack.open_pack(pack).load()


def apply_once(pack: Path, state: State, workers: int, way: Way) -> None:
    """Add a pack to a state."""
    with deltapack.open_pack(pack) as opened:
        (opened.load() if way.load else opened).add_to(dict(state), weight=1.0, verify=way.verify, workers=workers)


def peaks_above_state(base: Path, pack: Path, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield what applying with 2 workers needs beside the weights, by name: peak of a fresh process less its peak when it had them."""
    for way in WAYS:
        arguments = {"base": str(base), "pack": str(pack), "workers": 2, "load": way.load, "verify": way.verify}
        yield prefix + name_of(2, way), run_verb("add_to", arguments).peak_mb
