"""Measure speed and memory beside floors and other tools.

    python -m benchmarks.speed                      # all, about 30 minutes on 2 cores
    python -m benchmarks.speed --quick              # small inputs, to see that all works
    python -m benchmarks.speed --profile compress   # where the time of one row goes

Writes the sections Start-up, Speed, Peers, Cost curves and Targets of the results, and the plots.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.checkpoints import equal_share
from benchmarks.command import keep
from benchmarks.results import DATA, Section, Table
from benchmarks.speed import curves, groups
from benchmarks.speed.inputs import DEFAULT, open_bench
from benchmarks.speed.peers import HEADERS, Tools, measure_merges, measure_peers, measure_slowest, peer_rows
from benchmarks.speed.profile import ROWS, profile_table
from benchmarks.speed.targets import Measured, targets_table
from benchmarks.timing import Group, Rounds, floor_headers

__all__ = ["Plan", "main", "measure"]

COMMAND = "python -m benchmarks.speed"
ROUNDS, CURVE_ROUNDS = Rounds(), Rounds(fast=3)
STANDARD_SIZE = 1.0
"""GB; results at other sizes are not kept."""


@dataclass(frozen=True)
class Plan:
    """How large and how often. Sizes are of one checkpoint, in GB.

    Attributes:
        rows: Apply, merge and verify, mergekit; compress and zstd --patch-from are measured at twice the size.
        grid: The grid of settings.
        small: What the reference decoder and the start-up rows get.
        slowest: What zstd -19 gets; nothing if 0.
        sizes: Of the cost curve.
        curve: Of the other two curves, and of the tools that work on one fine-tune, some of which take minutes.
        rounds: Runs of each thing.
        curve_rounds: Runs in the cost curves.
        peers: Whether to measure other tools.
        make_environment: Whether to install them where they are missing.
    """

    rows: float = 1.0
    grid: float = 0.25
    small: float = 0.005
    slowest: float = 0.1
    sizes: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)
    curve: float = 0.5
    rounds: Rounds = ROUNDS
    curve_rounds: Rounds = CURVE_ROUNDS
    peers: bool = True
    make_environment: bool = True

    @classmethod
    def of(cls, gigabytes: float, *, quick: bool, peers: bool) -> Plan:
        """Return the plan for a size of `rows`; the rest follows."""
        if quick:
            once, size = Rounds(once_seconds=0.0), min(gigabytes, 0.02)
            return cls(size, size, 0.005, 0.0, (size / 2, size * 2), size, once, once, peers, make_environment=False)
        sizes = tuple(sorted({0.1 * gigabytes, 0.25 * gigabytes, 0.5 * gigabytes, gigabytes, 2 * gigabytes}))
        return cls(gigabytes, 0.25 * gigabytes, slowest=min(0.1, gigabytes / 10), sizes=sizes, curve=0.5 * gigabytes, peers=peers)


def measure(plan: Plan, plots: Path, *, quick: bool = False) -> Iterator[Section]:
    """Measure everything and yield a section as soon as it is done; the targets come last.

    Args:
        plan: How large and how often.
        plots: The folder for the plots.
        quick: Whether to leave out most settings of the grid and most points of the curves.
    """
    with open_bench(plan.small, 2) as small:
        yield Section("Start-up", COMMAND, groups.measure_startup(small, plan.rounds), STARTUP_NOTES)
        with open_bench(plan.grid, 1) as bench:
            grid = groups.measure_grid(bench, small, plan.curve_rounds, quick=quick)
            share = equal_share(bench.family, "model.layers.0.mlp.up_proj.weight")
        # Four fine-tunes, because mergekit merges four; without it one is enough, as packs come from several seeds.
        with open_bench(plan.rows, 4 if plan.peers else 1) as bench:
            memory = groups.measure_memory(bench, small, plan.rounds)
            folder = groups.measure_folder(bench, small, plan.rounds)
            tools = Tools(bench, {}, plan.make_environment) if plan.peers else None
            methods = groups.measure_methods(bench, small, plan.rounds, tools)
            merges = measure_merges(bench, plan.rounds, make_environment=plan.make_environment) if plan.peers else None
        with open_bench(2 * plan.rows, 1) as bench:
            compress = groups.measure_compress(bench, small, plan.rounds, peers=plan.peers)
        real, missing = groups.measure_real(plan.rounds)
        tables = (*_speed_tables(memory, folder, compress, methods), grid, real)
        yield Section("Speed", COMMAND, tables, (*_speed_notes(share), *missing))
        if merges is not None:
            yield Section("Peers", COMMAND, tuple(_peer_tables(plan, merges)), PEER_NOTES)
        sizes = curves.by_size(plan.sizes, plan.curve_rounds)
        yield _curves_section(plan, sizes, plots, quick=quick)
        table = targets_table(Measured(memory, folder, compress, merges, sizes, methods))
        yield Section("Targets", COMMAND, (table,), TARGET_NOTES)


def _peer_tables(plan: Plan, merges: Group) -> Iterator[Table]:
    with open_bench(plan.curve, 1) as bench:
        rows = tuple(measure_peers(bench, plan.rounds, make_environment=plan.make_environment))
        yield Table("one", f"One fine-tune, {bench.family.nbytes / 1e9:.2f} GB, {DEFAULT}", HEADERS, rows)
    if plan.slowest:
        with open_bench(plan.slowest, 1) as bench:
            yield Table("slowest", f"zstd -19, {bench.family.nbytes / 1e9:.2f} GB", HEADERS, tuple(measure_slowest(bench)))
    own = "merge of 4 to folder, 2 workers, command"
    rows = tuple(peer_rows("merge", merges, own, {}))
    yield Table("merges", f"Merging four fine-tunes, {merges.nbytes / 1e9:.2f} GB", HEADERS, rows)


def _speed_tables(memory: Group, folder: Group, compress: Group, methods: Group) -> Iterator[Table]:
    named = (
        ("memory", "Apply in memory", memory),
        ("folders", "Folders", folder),
        ("methods", f"Merging {groups.COUNT} packs by method", methods),
        ("compress", "Compress", compress),
    )
    for name, what, group in named:
        caption = f"{what}, {group.nbytes / 1e9:.2f} GB" + ("" if group is memory else f", {DEFAULT}")
        yield Table(name, caption, floor_headers("what"), tuple(group.rows()))


def _curves_section(plan: Plan, sizes: curves.Curve, plots: Path, *, quick: bool) -> Section:
    with open_bench(plan.curve, 1) as bench:
        packs = curves.by_packs(bench, (1, 2) if quick else (1, 2, 3, 4, 6, 8), plan.curve_rounds)
        workers = curves.by_workers(bench, (1, 2), plan.curve_rounds)
    drawn = (sizes, packs, workers)
    try:
        return Section("Cost curves", COMMAND, tuple(curves.draw(curve, plots) for curve in drawn), CURVE_NOTES)
    except ImportError as error:
        missing = f"no plots: {error}; install deltapack[plot]"
        return Section("Cost curves", COMMAND, tuple(curve.table() for curve in drawn), (*CURVE_NOTES, missing))


def _speed_notes(share: float) -> tuple[str, ...]:
    return (
        "Inputs: made-up Llamas in bf16 in shards of 256 MB (`benchmarks/checkpoints.py`). Differences have a standard deviation of "
        f"0.1 to 0.3 % of the weights'; after rounding {100 * share:.0f} % of the elements are equal in base and fine-tune "
        "(pair A in bf16: 55 %). All files are in the page cache.",
        "Seconds: median of calls in a warm process, taken in turns with the floors; rows that end in `command` are fresh processes from "
        "start to end. `x FLOOR`: median over the rounds of the time by that of the floor in the same round. GB/s and weights: of one "
        "checkpoint, whatever else is read.",
        "Floors: copying all tensors to another place in memory; `cp -r` of the base folder, bare and until it is on the disk "
        "(deltapack syncs what it writes); reading with a reused buffer of 4 MiB what the row reads (both checkpoints for compress).",
        "Peak RSS: VmHWM of a fresh process that makes this one call, libraries included.",
        "Apply in memory: `Pack.add_to` with the pack's streams decompressed in memory before (`Pack.load`), or from its file, with or "
        "without checking the digests of base and result. The state starts from the base in every run. Peak RSS: what it needs beside "
        "the weights.",
        "Every setting is compared bit for bit before it gets a time: on a small checkpoint of the same make, packs with those written "
        "without numba and results with the reference decoder of the specification; at full size all digests and some tensors.",
        "mergekit among the merges of 8: a fresh process on eight full fine-tunes (four, each under two names), with the density 0.1 that "
        "the packs have where the method takes one; slow ones ran once.",
    )


STARTUP_NOTES = (
    "First run: NUMBA_CACHE_DIR, HOME and XDG_CACHE_HOME are empty folders, so everything that is compiled is compiled then.",
    "Whole processes, from start to end.",
)
PEER_NOTES = (
    "All but the rows in memory and those of deltapack without `command` are fresh processes, from start to end. x: median over the "
    "rounds, against deltapack as a command. deltapack syncs what it writes, the others do not.",
    "zstd, xdelta3, zipnn: lossless, weight file by weight file, zstd and xdelta3 on one thread as is their default; what they restore is "
    "compared. deltatensors: its int4 strategy, every element kept. Plain torch: `benchmarks/peers.py`.",
    "mergekit merges the four full fine-tunes, deltapack their packs. Memory of mergekit and torch includes mapped files.",
    "In memory: additions alone, on weights that are loaded; plain torch with int32 positions and bf16 values, deltapack from streams "
    "in memory.",
)
CURVE_NOTES = (
    "Drop rate 0.9, int4, seeded; merges are of two packs where nothing else is said. Seconds: median of calls in a warm process. "
    "Peak RSS: a fresh process that makes the one call.",
)
TARGET_NOTES = (
    "Ratios: median over rounds in which both were run in turns, on 2 cores; the other sections have the times and how they were taken.",
    "A row that fails: `python -m benchmarks.speed --profile ROW` shows where its time goes.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. A quick run, or one at another size or without peers, is a trial and keeps nothing."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny inputs and one run each; writes nothing")
    parser.add_argument("--size", type=float, default=STANDARD_SIZE, metavar="GB", help="size of a checkpoint; compress gets twice that")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure other tools")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables, one document a section")
    parser.add_argument("--profile", choices=ROWS, metavar="ROW", help=f"only show where the time of a row goes: {', '.join(ROWS)}")
    options = parser.parse_args(argv)
    if options.profile:
        with open_bench(options.size, 1) as bench:
            for table in profile_table(bench, options.profile):
                print(table.markdown())
        return 0
    kept = not options.quick and options.peers and options.size == STANDARD_SIZE
    plan = Plan.of(options.size, quick=options.quick, peers=options.peers)
    with TemporaryDirectory() as scratch:  # a trial draws, too, but keeps nothing
        for section in measure(plan, DATA if kept else Path(scratch), quick=options.quick):
            print(json.dumps(asdict(section), indent=1) if options.json else section.markdown(), flush=True)
            if kept:
                keep(section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
