"""What a command costs beside its work: processor time of whole processes on a tiny pair of models, with the loops of numpy and of numba.

numpy's are what commands take by themselves for so little, numba's what they all took before; the bits are the same.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.command import main
from benchmarks.pairs import Shapes, write_family
from benchmarks.processes import DELTAPACK, run_command
from benchmarks.results import Cell, Section, Table, progress

__all__ = ["HEADERS", "SIZE_HEADERS", "measure"]

HEADERS = ("command", "numpy, processor s", "numba, processor s", "numpy, s", "numba, s", "at most 0.4 s")
SIZE_HEADERS = ("weights", "command", "numpy, processor s", "numba, processor s")
LIMIT_SECONDS = 0.4
LIMITED = ("compress", "apply", "merge")
LOOPS = ("numpy", "numba")
TINY: Shapes = {f"model.layers.{layer}.mlp.{name}_proj.weight": (64, 96) for layer in range(2) for name in ("up", "gate")}
STARTS = {"python -c pass": "pass", "import numpy": "import numpy", "import numba": "import numba"}


@dataclass(frozen=True)
class Family:
    """A base and two fine-tunes in a folder, with a pack of each and an exact one."""

    folder: Path

    def commands(self) -> dict[str, Sequence[str]]:
        """Return the words of each command that works on them."""
        out, pack = self.folder / "out", self.folder / "out.dpk"
        base, tuned, first, second, exact = (str(self.folder / name) for name in ("base", "tuned0", "0.dpk", "1.dpk", "exact.dpk"))
        return {
            "--help": ["--help"],
            "inspect": ["inspect", first],
            "compress": ["compress", base, tuned, "-o", str(pack)],
            "compress --drop-rate 0.9": ["compress", base, tuned, "--drop-rate", "0.9", "-o", str(pack)],
            "compress --exact": ["compress", base, tuned, "--exact", "-o", str(pack)],
            "apply": ["apply", base, first, "-o", str(out)],
            "apply of an exact pack": ["apply", base, exact, "-o", str(out)],
            "merge": ["merge", base, first, second, "-o", str(out)],
            "merge by ties": ["merge", base, first, second, "--method", "ties", "-o", str(out)],
            "merge to .dpk": ["merge", base, first, second, "-o", str(pack)],
            "verify": ["verify", first],
            "verify --base": ["verify", first, "--base", base],
        }

    def clean(self) -> None:
        """Remove what a command has written."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        (self.folder / "out.dpk").unlink(missing_ok=True)


def measure(quick: bool) -> Section:
    return Section(
        "Overhead",
        "python -m benchmarks.overhead",
        (
            Table("commands", "A command on a tiny model, processor time", HEADERS, tuple(_command_rows(2 if quick else 9))),
            Table("sizes", "Where numba begins to pay", SIZE_HEADERS, tuple(_size_rows(quick))),
        ),
        (
            "Processor time: user and system, of all threads, whole processes from start to end; medians of 9 runs (sizes: of 3) in turns, "
            "everything compiled and in the page cache.",
            f"The tiny models have {_elements(TINY):,} weights; those of the sizes are in matrices of 256 by 1,024, and all are in bf16.",
        ),
    )


def _command_rows(rounds: int) -> Iterator[tuple[Cell, ...]]:
    with TemporaryDirectory() as folder:
        family = _family(Path(folder), TINY)
        starts = {name: [sys.executable, "-c", code] for name, code in STARTS.items()}
        for name, words in (starts | {name: [*DELTAPACK, *words] for name, words in family.commands().items()}).items():
            found = _timed(family, name, words, rounds)
            (numpy, numpy_wall), (numba, numba_wall) = found["numpy"], found["numba"]
            limited = name.split()[0] in LIMITED
            yield name, numpy, numba, numpy_wall, numba_wall, ("pass" if numpy <= LIMIT_SECONDS else "FAIL") if limited else None


def _size_rows(quick: bool) -> Iterator[tuple[Cell, ...]]:
    for matrices in (1,) if quick else (1, 4, 16):
        shapes = {f"model.layers.{layer}.mlp.up_proj.weight": (256, 1024) for layer in range(matrices)}
        with TemporaryDirectory() as folder:
            family = _family(Path(folder), shapes)
            for name in ("compress", "compress --exact", "apply", "apply of an exact pack", "merge"):
                found = _timed(family, name, [*DELTAPACK, *family.commands()[name]], 1 if quick else 3)
                yield _elements(shapes), name, found["numpy"][0], found["numba"][0]


def _timed(family: Family, name: str, words: Sequence[str], rounds: int) -> Mapping[str, tuple[float, float]]:
    """Return the median processor seconds and seconds of a command with each kind of loops, after a run of each that is not counted."""
    progress(name)
    found: dict[str, list[tuple[float, float]]] = {loops: [] for loops in LOOPS}
    for _ in range(rounds + 1):
        for loops, runs in found.items():
            run = run_command(words, {"DELTAPACK_LOOPS": loops, "PYTHONDONTWRITEBYTECODE": ""})
            runs.append((run.processor_seconds, run.seconds))
            family.clean()
    return {loops: (median(run[0] for run in runs[1:]), median(run[1] for run in runs[1:])) for loops, runs in found.items()}


def _family(folder: Path, shapes: Shapes) -> Family:
    base, tuned = write_family(folder, shapes, finetunes=2)
    for number, one in enumerate(tuned):
        run_command([*DELTAPACK, "compress", base, one, "-o", folder / f"{number}.dpk"])
    run_command([*DELTAPACK, "compress", base, tuned[0], "--exact", "-o", folder / "exact.dpk"])
    return Family(folder)


def _elements(shapes: Shapes) -> int:
    return sum(rows * columns for rows, columns in shapes.values())


if __name__ == "__main__":
    sys.exit(main(measure))
