"""What is measured: groups of things that are timed in turns with the floors of the machine, each after its output was checked."""

from __future__ import annotations

import filecmp
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.checkpoints import cache_folder
from benchmarks.pairs import Pair, real_pairs
from benchmarks.processes import DELTAPACK, CommandFailedError, run_command, run_verb
from benchmarks.results import Cell, Table, progress
from benchmarks.speed.candidates import (
    State,
    Verb,
    command_candidate,
    copy_floor,
    cp_floor,
    in_memory,
    peaks_above_state,
    read_floor,
    two_states,
    weight_files,
)  # fmt: skip
from benchmarks.speed.checks import check_budget, check_large, check_setting, decoder, wrong_in_folder
from benchmarks.speed.inputs import DEFAULT, Bench, Setting
from benchmarks.speed.peers import Tools, patch_from
from benchmarks.timing import Group, Rounds, Sample, floor_headers, interleave, ratio
from deltapack.checkpoint import open_checkpoint

__all__ = [
    "COUNT", "IN_MEMORY", "METHODS", "first_run", "measure_compress", "measure_folder", "measure_grid", "measure_memory",
    "measure_methods", "measure_real", "measure_startup", "method_name", "short_commands",
]  # fmt: skip

IN_MEMORY = [
    *(Setting(drop, "int4", index) for drop in (0.9, 0.99) for index in ("gaps", "seeded")),
    *(Setting(drop, "ternary", "stratified") for drop in (0.745, 0.898)),
]
"""The settings that have targets in memory; the last two take .25 and .1 bits a weight."""
MERGES = (2, 4, 8)
METHODS = ("linear", "ties", "sce", "ram", "model_stock")
MERGEKIT_METHODS = ("task_arithmetic", "ties", "sce", "model_stock")
COUNT = 8
"""Packs that the methods merge."""
SETTINGS = [Setting(*choice) for choice in product((0.5, 0.9, 0.99), ("bf16", "int8", "int4"), ("seeded", "gaps"))]
QUICK = [Setting(0.9, "int4", "seeded"), Setting(0.99, "bf16", "gaps")]
LIMIT_SECONDS = 0.3
PYTHON = "python -c pass"
"""The least that a command can be."""


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
    base, state = two_states(bench.base)
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
    base, state = two_states(bench.base)
    candidates = [copy_floor(base, state, 1), copy_floor(base, state, 2)]
    reasons: dict[str, str] = {}
    peaks: dict[str, float] = {}
    for setting in IN_MEMORY:
        prefix = f"{setting}: "
        ways = in_memory(bench.pack(setting), base, state, prefix)
        candidates += ways
        wrong = check_setting(setting, small).get("add_to") or check_large(bench, setting, "add_to")
        reasons |= dict.fromkeys((one.name for one in ways), wrong)
        peaks |= peaks_above_state(bench.base, bench.pack(setting), prefix)
    return Group(bench.family.nbytes, interleave(candidates, rounds), peaks, reasons)


def measure_compress(bench: Bench, small: Bench, rounds: Rounds, *, peers: bool) -> Group:
    """Time compress, with reading both checkpoints and zstd --patch-from in the same rounds."""
    verbs: list[Verb] = [bench.compress(DEFAULT, 2), bench.compress(DEFAULT, 1), bench.compress_by_budget(2)]
    peaks: dict[str, float] = {}
    candidates = [read_floor([bench.base, bench.family.tuned[0]]), *(verb.candidate() for verb in verbs), verbs[0].command(peaks)]
    if peers:
        candidates.append(patch_from(bench, peaks).candidate)
    samples = interleave(candidates, rounds)
    peaks |= {verb.name: verb.peak_mb() for verb in verbs}
    wrong = check_setting(DEFAULT, small).get("compress") or check_large(bench, DEFAULT, "compress")
    reasons = {name: wrong for name in samples if name.startswith("compress")} | {verbs[2].name: check_budget(small)}
    return Group(bench.family.nbytes, samples, peaks, reasons)


def method_name(method: str) -> str:
    """Name of a row of merging by a method."""
    return f"{method} of {COUNT} to folder, 2 workers"


def measure_methods(bench: Bench, small: Bench, rounds: Rounds, tools: Tools | None = None) -> Group:
    """Time each method, with cp of the base in the same rounds, and mergekit on as many full fine-tunes."""
    peers = [tools.mergekit(method, COUNT).candidate for method in MERGEKIT_METHODS] if tools is not None else []
    verbs = [_method_verb(bench, method) for method in METHODS]
    floors = [cp_floor(bench.base, bench.scratch, sync=sync) for sync in (False, True)]
    wrong = {method_name(method): _method_wrong(small, method) for method in METHODS}
    samples = interleave([*floors, *(verb.candidate() for verb in verbs), *peers], rounds)
    peaks = (dict(tools.peaks) if tools is not None else {}) | {verb.name: verb.peak_mb() for verb in verbs}
    return Group(bench.family.nbytes, samples, peaks, wrong)


def _method_verb(bench: Bench, method: str) -> Verb:
    linear = bench.merge(COUNT, 2)
    arguments = dict(linear.arguments)
    if method not in ("linear", "ties"):
        del arguments["weights"]
    return replace(linear, name=method_name(method), arguments=arguments | {"method": method})


def _method_wrong(small: Bench, method: str) -> str:
    """Compare with what a process without numba writes; the formulas themselves are compared with plain ones by the tests."""
    verb = _method_verb(small, method)
    verb.prepare()
    verb.call()
    assert verb.out is not None
    plain = small.scratch / "without-numba"
    run_verb("merge", verb.arguments | {"out": str(plain), "force": True, "without_numba": True})
    same = all(filecmp.cmp(path, plain / path.name, shallow=False) for path in weight_files(verb.out))
    return "" if same else "the result differs from the one that plain numpy gives"


def measure_grid(bench: Bench, small: Bench, rounds: Rounds, *, quick: bool) -> Table:
    """Time every setting on a checkpoint of moderate size; each one's floors are measured in turns with it."""
    base, state = two_states(bench.base)
    rows: list[tuple[Cell, ...]] = []
    for setting in QUICK if quick else SETTINGS:
        rows += _setting_rows(bench, setting, check_setting(setting, small), rounds, base, state)
    caption = f"Compress and apply by setting, {bench.family.nbytes / 1e9:.2f} GB"
    return Table("settings", caption, floor_headers("drop", "values", "index", "what"), tuple(rows))


def _setting_rows(
    bench: Bench, setting: Setting, wrong: Mapping[str, str], rounds: Rounds, base: State, state: State
) -> Iterator[tuple[Cell, ...]]:
    progress(f"timing {setting}")
    verbs = [bench.compress(setting, 2), bench.apply(setting, 2)]
    ways = in_memory(bench.pack(setting), base, state)
    floors = [
        copy_floor(base, state, 1),
        copy_floor(base, state, 2),
        cp_floor(bench.base, bench.scratch, sync=False),
        cp_floor(bench.base, bench.scratch, sync=True),
        read_floor([bench.base, bench.family.tuned[0]]),
    ]
    samples = interleave([*floors, *(verb.candidate() for verb in verbs), *ways], rounds)
    peaks = {verb.name: verb.peak_mb() for verb in verbs}
    peaks |= peaks_above_state(bench.base, bench.pack(setting))
    reasons = {verb.name: wrong.get(verb.verb, "") for verb in verbs}
    reasons |= {one.name: wrong.get("add_to", "") for one in ways}
    group = Group(bench.family.nbytes, samples, peaks, reasons)
    names = [*(verb.name for verb in verbs), *(one.name for one in ways)]
    yield from group.rows(setting.drop_rate, setting.values, setting.index, names=names)


def measure_real(rounds: Rounds) -> tuple[Table, list[str]]:
    """Return the table of the pairs that could be had, and a sentence for each that could not."""
    pairs, missing = real_pairs()
    rows = tuple(row for pair in pairs for row in _pair_rows(pair, rounds))
    return Table("pairs", f"Real pairs, {DEFAULT}", floor_headers("pair", "MB", "what"), rows), missing


def _pair_rows(pair: Pair, rounds: Rounds) -> Iterator[tuple[Cell, ...]]:
    progress(f"timing pair {pair.name}")
    with open_checkpoint(pair.finetuned) as tuned:
        tensors = tuned.tensors.values()
        nbytes, numel = sum(tensor.nbytes for tensor in tensors), sum(tensor.numel for tensor in tensors)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_folder(), prefix=".run-") as scratch:
        base, pack, out = str(pair.base), str(Path(scratch) / "pair.dpk"), str(Path(scratch) / "applied")
        arguments = {"base": base, "finetuned": str(pair.finetuned), "recipe": DEFAULT.recipe(), "workers": 2, "out": pack}
        verbs = [
            Verb("compress, 2 workers", "compress", arguments),
            Verb("apply to folder, 2 workers", "apply", {"base": base, "pack": pack, "workers": 2, "out": out}),
            Verb("verify with base, 2 workers", "verify", {"base": base, "pack": pack, "workers": 2}),
        ]
        floors = [cp_floor(pair.base, Path(scratch), sync=sync) for sync in (False, True)]
        samples = interleave([*floors, read_floor([pair.base, pair.finetuned]), *(verb.candidate() for verb in verbs)], rounds)
        wrong = _pair_wrong(pair, Path(pack), Path(out))
        peaks = {verb.name: verb.peak_mb() for verb in verbs}
    group = Group(nbytes, samples, peaks, {verb.name: wrong for verb in verbs}, numel)
    yield from group.rows(pair.name, nbytes / 1e6, names=[verb.name for verb in verbs])


def _pair_wrong(pair: Pair, pack: Path, out: Path) -> str:
    """Return which restored tensor is not the reference decoder's, which checks every digest in the pack, too."""
    with open_checkpoint(pair.base) as base:
        tensors = {name: (info.dtype.name, info.shape, base.read(name).tobytes()) for name, info in base.tensors.items()}
    return wrong_in_folder(out, {name: tensor[2] for name, tensor in decoder().restore(pack, tensors).items()})


def measure_startup(small: Bench, rounds: Rounds) -> tuple[Table, Table]:
    """Time commands on a small model, where the work itself is little."""
    verbs = small.compress(DEFAULT, 2), small.apply(DEFAULT, 2), small.merge(2, 2), small.verify(2, base=True)
    headers = ("command", "first run s", "second run s", "compiling s", "first run peak RSS MB", "second run peak RSS MB")
    caption = f"First run after an installation, {small.family.nbytes / 1e9:.2f} GB"
    return short_commands(small, rounds), Table("first-runs", caption, headers, tuple(map(first_run, verbs)))


def short_commands(small: Bench, rounds: Rounds) -> Table:
    """Time commands that do next to nothing, in turns with an empty Python program."""
    headers = ("command", "seconds", "min..max", "runs", "peak RSS MB", f"x {PYTHON}", f"at most {LIMIT_SECONDS} s")
    return Table("commands", "Short commands", headers, tuple(_short_rows(small, rounds)))


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
