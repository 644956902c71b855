"""Apply a pack to weights in memory: straight from its file, and from its streams held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deltapack
from benchmarks.processes import run_verb
from benchmarks.speed.floors import State
from benchmarks.timing import Candidate
from deltapack.checkpoint import open_checkpoint

__all__ = ["MISSING", "apply_once", "candidates", "name_of", "peak_above_state_mb", "read_state"]

MISSING = next((f"deltapack.Pack has no `{name}`" for name in ("add_to", "load") if not hasattr(deltapack.Pack, name)), "")
"""Why packs cannot be applied in memory; empty where they can."""


def read_state(base: Path) -> dict[str, NDArray[Any]]:
    """Return every tensor of a checkpoint, `[numel]` in its storage type (bf16 as uint16)."""
    with open_checkpoint(base) as opened:
        return {name: np.ascontiguousarray(opened.read(name)) for name in opened.tensors}


def name_of(workers: int, *, load: bool) -> str:
    """Name of a candidate; `load` is from memory."""
    where = "streams in memory" if load else "from the file"
    return f"apply in memory, {where}, {workers} worker{'s' if workers > 1 else ''}"


def candidates(pack: Path, base: State, state: State, prefix: str = "") -> list[Candidate]:
    """Return both ways with 1 and 2 workers. `state` starts from `base` in every run; copying it is not timed.

    Packs whose streams are in memory are loaded before, as a server that switches packs would.
    """
    out: list[Candidate] = []
    loaded: list[Any] = []

    def reset() -> None:
        for name, tensor in base.items():
            np.copyto(state[name], tensor)

    def from_file(workers: int) -> None:
        apply_once(pack, state, workers)

    def from_memory(workers: int) -> None:
        if MISSING:
            raise NotImplementedError(MISSING)
        if not loaded:  # in the warm-up
            with deltapack.open_pack(pack) as opened:
                loaded.append(opened.load())  # type: ignore[attr-defined]
        loaded[0].add_to(state, weight=1.0, workers=workers)

    for load, call in ((False, from_file), (True, from_memory)):
        for workers in (1, 2):
            out.append(Candidate(prefix + name_of(workers, load=load), lambda call=call, workers=workers: call(workers), reset))  # type: ignore[misc]
    return out


def apply_once(pack: Path, state: State, workers: int, *, load: bool = False) -> None:
    """Add a pack to a state."""
    if MISSING:
        raise NotImplementedError(MISSING)
    with deltapack.open_pack(pack) as opened:
        source: Any = opened.load() if load else opened  # type: ignore[attr-defined]
        source.add_to(state, weight=1.0, workers=workers)


def peak_above_state_mb(base: Path, pack: Path, *, load: bool, workers: int = 2) -> float | None:
    """Return what applying needs beside the weights: the peak of a fresh process less its peak when it had read them."""
    if MISSING:
        return None
    arguments = {"base": str(base), "pack": str(pack), "workers": workers, "load": load}
    return run_verb("add_to", arguments).peak_mb
