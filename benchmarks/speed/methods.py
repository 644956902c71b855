"""Merging by methods that do more than add, beside `linear` and copying the base."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path

from benchmarks.processes import run_verb
from benchmarks.speed.floors import cp_floor
from benchmarks.speed.inputs import Bench
from benchmarks.speed.peer_tools import Tools
from benchmarks.speed.rows import Group
from benchmarks.speed.verbs import Verb
from benchmarks.timing import Rounds, interleave

__all__ = ["COUNT", "METHODS", "measure_methods", "name_of"]

METHODS = ("linear", "ties", "sce", "ram", "model_stock")
MERGEKIT_METHODS = ("task_arithmetic", "ties", "sce", "model_stock")
COUNT = 8


def name_of(method: str) -> str:
    """Name of a row."""
    return f"{method} of {COUNT} to folder, 2 workers"


def measure_methods(bench: Bench, small: Bench, rounds: Rounds, tools: Tools | None = None) -> Group:
    """Time each method, with cp of the base in the same rounds, and mergekit on as many full fine-tunes."""
    peers = [tools.mergekit(method, COUNT).candidate for method in MERGEKIT_METHODS] if tools is not None else []
    verbs = [_verb(bench, method) for method in METHODS]
    floors = [cp_floor(bench.base, bench.scratch, sync=sync) for sync in (False, True)]
    wrong = {name_of(method): _wrong(small, method) for method in METHODS}
    samples = interleave([*floors, *(verb.candidate() for verb in verbs), *peers], rounds)
    peaks = (dict(tools.peaks) if tools is not None else {}) | {verb.name: verb.peak_mb() for verb in verbs}
    return Group(bench.family.nbytes, samples, peaks, wrong)


def _verb(bench: Bench, method: str) -> Verb:
    linear = bench.merge(COUNT, 2)
    arguments = dict(linear.arguments)
    if method not in ("linear", "ties"):
        del arguments["weights"]
    return replace(linear, name=name_of(method), arguments=arguments | {"method": method})


def _wrong(small: Bench, method: str) -> str:
    """Compare with what a process without numba writes; the formulas themselves are compared with plain ones by the tests."""
    verb = _verb(small, method)
    verb.prepare()
    verb.call()
    assert verb.out is not None
    plain = small.scratch / "without-numba"
    run_verb("merge", verb.arguments | {"out": str(plain), "force": True, "without_numba": True})
    same = all(filecmp.cmp(path, plain / path.name, shallow=False) for path in _weights(verb.out))
    return "" if same else "the result differs from the one that plain numpy gives"


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
