"""Peak memory and time of every verb, each in a process of its own, on one huge tensor and on very many small ones."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.command import main
from benchmarks.pairs import Shapes, write_family
from benchmarks.processes import run_verb
from benchmarks.results import Cell, Section, Table, progress

LIMIT_MB = 512
"""For a checkpoint with a tensor of 1 GB."""
HEADERS = ("checkpoint", "verb", "workers", "peak RSS MB", "seconds", f"below {LIMIT_MB} MB")
RECIPE = {"drop_rate": 0.9, "values": "int4", "index": "seeded"}
COUNT_HEADERS = ("tensors", "verb", "peak RSS MB", "seconds", "us / tensor more than with few")


@dataclass(frozen=True)
class Family:
    """A base, two fine-tunes, and their packs."""

    folder: Path
    base: Path
    tuned: tuple[Path, Path]

    @property
    def packs(self) -> list[str]:
        return [str(self.folder / f"{number}.dpk") for number in range(2)]

    def calls(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield the name of a row, the verb and its arguments, in an order in which each finds its input."""
        base, first = str(self.base), self.packs[0]
        for tuned, pack in zip(self.tuned, self.packs, strict=True):
            yield "compress", "compress", {"base": base, "finetuned": str(tuned), "out": pack, "recipe": RECIPE}
        yield "apply", "apply", {"base": base, "pack": first, "out": str(self.folder / "restored")}
        merge = {"base": base, "packs": self.packs, "weights": [0.5, 0.5]}
        yield "merge to folder", "merge", merge | {"out": str(self.folder / "merged")}
        yield "merge to .dpk", "merge", merge | {"out": str(self.folder / "merged.dpk")}
        yield "verify", "verify", {"pack": first}
        yield "verify with base", "verify", {"pack": first, "base": base}


def measure(quick: bool) -> Section:
    return Section(
        "Memory",
        "python -m benchmarks.memory",
        (
            Table("huge", "One huge tensor", HEADERS, tuple(_huge_rows(quick))),
            Table("tensors", "Number of tensors, the same elements in all", COUNT_HEADERS, tuple(_count_rows(quick))),
        ),
        (
            "Peak RSS: VmHWM of a fresh process that makes the one call (ru_maxrss where /proc is missing), libraries included; "
            "`import deltapack` and its libraries alone is the first row.",
            "Drop rate 0.9, values int4, index seeded; two packs are merged; bf16; files are in the page cache.",
            "The index of a pack and the headers of checkpoints are held in memory: that is what more tensors cost.",
        ),
    )


def _huge_rows(quick: bool) -> Iterator[tuple[Cell, ...]]:
    rows = 1 << (8 if quick else 17)
    name = f"one bf16 tensor [{rows}, 4096], {rows * 8192 / 1e6:.0f} MB"
    run = run_verb("import", {})
    yield None, "import deltapack", 1, run.peak_mb, run.seconds, "yes" if run.peak_mb < LIMIT_MB else "NO"
    with _family({"weight": (rows, 4096), "norm.weight": (4096,)}) as family:
        for workers in (1, 2, 4):
            for row, rss, seconds in _runs(family, workers):
                yield name, row, workers, rss, seconds, "yes" if rss < LIMIT_MB else "NO"


def _count_rows(quick: bool) -> Iterator[tuple[Cell, ...]]:
    many, few = (2_000, 20) if quick else (20_000, 200)
    seconds_of: dict[tuple[int, str], float] = {}
    for count in (few, many):
        side = 320 if count == few else 32
        shapes = {f"model.layers.{number}.weight": (side, side) for number in range(count)}
        with _family(shapes) as family:
            for row, rss, seconds in _runs(family, 2):
                seconds_of[count, row] = seconds
                more = None if count == few else 1e6 * (seconds - seconds_of[few, row]) / count
                yield count, row, rss, seconds, more


@contextmanager
def _family(shapes: Shapes) -> Iterator[Family]:
    """A family in a temporary folder, for which the disk must have room: base, two fine-tunes, a restored one, and packs."""
    need = 5 * sum(2 * math.prod(shape) for shape in shapes.values())
    with TemporaryDirectory() as name:
        free = shutil.disk_usage(name).free
        if free < need:
            raise SystemExit(f"{name} has {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB are needed; set TMPDIR to another place")
        progress(f"writing {len(shapes):,} tensors three times")
        base, tuned = write_family(Path(name), shapes, finetunes=2, shard_bytes=8 << 30)
        yield Family(Path(name), base, (tuned[0], tuned[1]))


def _runs(family: Family, workers: int) -> Iterator[tuple[str, float, float]]:
    done: set[str] = set()
    for row, verb, arguments in family.calls():
        progress(f"{row}, workers {workers}")
        out = arguments.get("out")
        run = run_verb(verb, arguments | {"workers": workers} | ({"force": True} if out else {}))
        if out and Path(out).is_dir():
            shutil.rmtree(out)
        if row not in done:
            yield row, run.peak_mb, run.seconds
        done.add(row)


if __name__ == "__main__":
    sys.exit(main(measure))
