"""The groups that the targets speak of: apply and merge and verify at 1 GB, in memory at 1 GB, compress at 2 GB."""

from __future__ import annotations

import numpy as np

from benchmarks.speed import memory_apply
from benchmarks.speed.checks import check_large, check_setting
from benchmarks.speed.floors import copy_floor, cp_floor, read_floor
from benchmarks.speed.inputs import DEFAULT, Bench, Setting
from benchmarks.speed.peer_tools import patch_from
from benchmarks.speed.rows import Group
from benchmarks.speed.verbs import Verb
from benchmarks.timing import Rounds, interleave

__all__ = ["IN_MEMORY", "measure_compress", "measure_folder", "measure_memory"]

IN_MEMORY = [Setting(drop, "int4", index) for drop in (0.9, 0.99) for index in ("gaps", "seeded")]
MERGES = (2, 4, 8)


def measure_folder(bench: Bench, small: Bench, rounds: Rounds) -> Group:
    """Time apply, merge, verify and inspect, with cp of the base in the same rounds."""
    verbs = [
        bench.apply(DEFAULT, 2),
        bench.apply(DEFAULT, 1),
        *(bench.merge(count, 2) for count in MERGES),
        bench.merge(4, 1),
        bench.verify(2, base=False),
        bench.verify(1, base=False),
        bench.verify(2, base=True),
        bench.verify(1, base=True),
        bench.inspect(),
    ]
    base = memory_apply.read_state(bench.base)
    state = {name: np.empty_like(tensor) for name, tensor in base.items()}
    floors = [
        copy_floor(base, state, 1),
        copy_floor(base, state, 2),
        cp_floor(bench.base, bench.scratch, sync=False),
        cp_floor(bench.base, bench.scratch, sync=True),
        read_floor([bench.base]),
    ]
    wrong = dict(check_setting(DEFAULT, small))
    wrong["apply"] = wrong.get("apply") or check_large(bench, DEFAULT, "apply")
    for count in MERGES:
        wrong[f"merge of {count}"] = wrong.get("merge") or check_large(bench, DEFAULT, "merge", count)
    peaks: dict[str, float] = {}
    commands = [verb.command(peaks) for verb in (bench.apply(DEFAULT, 2), bench.merge(4, 2))]
    samples = interleave([*floors, *(verb.candidate() for verb in verbs), *commands], rounds)
    peaks |= {verb.name: verb.peak_mb() for verb in verbs}
    reasons = {name: next((why for verb, why in wrong.items() if why and name.startswith(verb)), "") for name in samples}
    return Group(bench.family.nbytes, samples, peaks, reasons)


def measure_memory(bench: Bench, small: Bench, rounds: Rounds) -> Group:
    """Time applying in memory, with copying the same tensors in the same rounds."""
    base = memory_apply.read_state(bench.base)
    state = {name: np.empty_like(tensor) for name, tensor in base.items()}
    candidates = [copy_floor(base, state, 1), copy_floor(base, state, 2)]
    reasons: dict[str, str] = {}
    peaks: dict[str, float] = {}
    for setting in IN_MEMORY:
        prefix = f"{setting}: "
        ways = memory_apply.candidates(bench.pack(setting), base, state, prefix)
        candidates += ways
        wrong = check_setting(setting, small).get("add_to") or check_large(bench, setting, "add_to")
        reasons |= dict.fromkeys((one.name for one in ways), wrong)
        peaks |= memory_apply.peaks_above_state(bench.base, bench.pack(setting), prefix)
    return Group(bench.family.nbytes, interleave(candidates, rounds), peaks, reasons)


def measure_compress(bench: Bench, small: Bench, rounds: Rounds, *, peers: bool) -> Group:
    """Time compress, with reading both checkpoints and zstd --patch-from in the same rounds."""
    verbs: list[Verb] = [bench.compress(DEFAULT, 2), bench.compress(DEFAULT, 1)]
    peaks: dict[str, float] = {}
    candidates = [read_floor([bench.base, bench.family.tuned[0]]), *(verb.candidate() for verb in verbs), verbs[0].command(peaks)]
    if peers:
        candidates.append(patch_from(bench, peaks).candidate)
    samples = interleave(candidates, rounds)
    peaks |= {verb.name: verb.peak_mb() for verb in verbs}
    wrong = check_setting(DEFAULT, small).get("compress") or check_large(bench, DEFAULT, "compress")
    return Group(bench.family.nbytes, samples, peaks, {name: wrong for name in samples if name.startswith("compress")})
