"""Compress and apply over drop rates, value codecs and index codecs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from benchmarks.results import Cell, Table, progress
from benchmarks.speed import memory_apply
from benchmarks.speed.checks import check_setting
from benchmarks.speed.floors import State, copy_floor, cp_floor, read_floor
from benchmarks.speed.inputs import Bench, Setting
from benchmarks.speed.rows import Group, floor_headers
from benchmarks.timing import Rounds, interleave

__all__ = ["SETTINGS", "measure_grid"]

SETTINGS = [Setting(*choice) for choice in product((0.5, 0.9, 0.99), ("bf16", "int8", "int4"), ("seeded", "gaps"))]
QUICK = [Setting(0.9, "int4", "seeded"), Setting(0.99, "bf16", "gaps")]


def measure_grid(bench: Bench, small: Bench, rounds: Rounds, *, quick: bool) -> Table:
    """Time every setting on a checkpoint of moderate size; each one's floors are measured in turns with it."""
    base = memory_apply.read_state(bench.base)
    state = {name: np.empty_like(tensor) for name, tensor in base.items()}
    rows: list[tuple[Cell, ...]] = []
    for setting in QUICK if quick else SETTINGS:
        rows += _rows(bench, setting, check_setting(setting, small), rounds, base, state)
    caption = f"Compress and apply by setting, {bench.family.nbytes / 1e9:.2f} GB"
    return Table(caption, floor_headers("drop", "values", "index", "what"), tuple(rows))


def _rows(
    bench: Bench, setting: Setting, wrong: Mapping[str, str], rounds: Rounds, base: State, state: State
) -> Iterator[tuple[Cell, ...]]:
    progress(f"timing {setting}")
    verbs = [bench.compress(setting, 2), bench.apply(setting, 2)]
    in_memory = memory_apply.candidates(bench.pack(setting), base, state)
    floors = [
        copy_floor(base, state, 1),
        copy_floor(base, state, 2),
        cp_floor(bench.base, bench.scratch, sync=False),
        cp_floor(bench.base, bench.scratch, sync=True),
        read_floor([bench.base, bench.family.tuned[0]]),
    ]
    samples = interleave([*floors, *(verb.candidate() for verb in verbs), *in_memory], rounds)
    peaks = {verb.name: verb.peak_mb() for verb in verbs}
    peaks |= memory_apply.peaks_above_state(bench.base, bench.pack(setting))
    reasons = {verb.name: wrong.get(verb.verb, "") for verb in verbs}
    reasons |= {one.name: wrong.get("add_to", "") for one in in_memory}
    group = Group(bench.family.nbytes, samples, peaks, reasons)
    names = [*(verb.name for verb in verbs), *(one.name for one in in_memory)]
    yield from group.rows(setting.drop_rate, setting.values, setting.index, names=names)
