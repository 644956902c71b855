"""Bytes of pairs and of steps of a training, beside the entropy and beside other tools."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.exact.entropy import chunk_entropy, model_entropy
from benchmarks.exact.inputs import Case, chunks_of, step_case, step_runs, write_files
from benchmarks.exact.packs import Whole, whole
from benchmarks.exact.tools import Result, tool_results
from benchmarks.exact.training import Run
from benchmarks.results import Cell, Table, progress
from deltapack.codecs.exact import encode_exact_chunk

__all__ = ["SIZE_HEADERS", "STEP_HEADERS", "TOOL_HEADERS", "size_row", "size_tables", "step_tables"]

FORMS = ("equal", "planes", "dense", "sparse", "shared")
OURS = "deltapack --exact"
SIZE_HEADERS = (
    "pair", "type", "MB", "changed %", "pack", "payload", "entropy", "over %", "entropy, model", "over it %", "best other tool",
    "its share", "pack is x smaller", "bounds held", "alone", "chunks",
)  # fmt: skip
TOOL_HEADERS = ("pair", "type", "tool", "share", "x pack", "encode s", "decode s", "remark")
STEP_HEADERS = (
    "run",
    "step",
    "changed %",
    "pack bytes",
    "payload bytes",
    "payload",
    "entropy",
    "over %",
    "entropy, model",
    "over it %",
    "within 5 or 10 %",
)
TOOL_STEP_HEADERS = ("run", "steps", "changed %", "tool", "share", "x smaller than whole", "x pack", "encode s", "decode s")
SPARSE = 3.0
"""Percent of elements: below, few changed."""
EVERY = 10
"""Other tools are measured on every so many steps."""


@dataclass(frozen=True)
class Sizes:
    """Of a pair: its pack, and what bounds its payload, in bytes."""

    pack: Whole
    chunks: float
    model: float
    alone: int
    forms: str


def sizes_of(case: Case, folder: Path) -> Sizes:
    """Pack a pair whose files are in a folder, and find chunk by chunk what there is to compare it with."""
    entropy, alone, forms = 0.0, 0, [0] * len(FORMS)
    for chunk in chunks_of(case.tensors):
        data = encode_exact_chunk(chunk.base, chunk.tuned, case.dtype)
        forms[data[0]] += 1
        entropy += chunk_entropy(chunk, data, case.dtype)
        alone += len(encode_exact_chunk(None, chunk.tuned, case.dtype))
    named = ", ".join(f"{count} {form}" for form, count in zip(FORMS, forms, strict=True) if count)
    return Sizes(whole(folder / "base", folder / "tuned"), entropy, model_entropy(case), alone, named)


def size_tables(cases: Sequence[Case]) -> tuple[Table, Table]:
    """Return the table of pairs, and that of tools."""
    sizes, tools = [], []
    for case in cases:
        progress(f"{case.name} as {case.dtype}")
        with _files(case) as folder:
            found, results = sizes_of(case, folder), list(tool_results(case, folder))
        sizes.append(size_row(case, found, results))
        tools += tool_rows(case, found, results)
    return Table("pairs", "Pairs", SIZE_HEADERS, tuple(sizes)), Table("tools", "Pairs, tool by tool", TOOL_HEADERS, tuple(tools))


def size_row(case: Case, found: Sizes, results: Sequence[Result]) -> tuple[Cell, ...]:
    """Return a row of the table of pairs."""
    nbytes, own = case.nbytes, found.pack.payload
    known = [(result.size, result.tool) for result in results if result.size]
    least, tool = min(known) if known else (None, None)
    peer = (tool, None, None) if least is None else (tool, least / nbytes, least / found.pack.size)
    head = (case.name, case.dtype.name, nbytes / 1e6, case.changed, found.pack.size / nbytes, own / nbytes)
    is_least = least is None or found.pack.size < least
    held = "yes" if is_least and is_near(case, found) else "no"
    return *head, *floors(case, found), *peer, held, found.alone / nbytes, found.forms


def is_near(case: Case, found: Sizes) -> bool:
    """Tell whether the payload is as near to the entropy as is wished: within a twentieth, or a tenth where little changed."""
    return found.pack.payload <= (1.10 if case.changed < SPARSE else 1.05) * found.chunks


def floors(case: Case, found: Sizes) -> tuple[Cell, ...]:
    """Return both entropies as shares, each with how far the payload is above it."""
    own, nbytes = found.pack.payload, case.nbytes
    return found.chunks / nbytes, over(own, found.chunks), found.model / nbytes, over(own, found.model)


def over(size: float, floor: float) -> float | None:
    """Return how many percent a size is above a floor; none where there is nothing to store."""
    return 100 * (size / floor - 1) if floor else None


def tool_rows(case: Case, found: Sizes, results: Sequence[Result]) -> list[tuple[Cell, ...]]:
    own = ours(found.pack)
    rows: list[tuple[Cell, ...]] = []
    for result in (own, *results):
        share = None if result.size is None else result.size / case.nbytes
        times = None if result.size is None else result.size / found.pack.size
        rows.append((case.name, case.dtype.name, result.tool, share, times, result.encode, result.decode, result.remark))
    return rows


def ours(pack: Whole) -> Result:
    """Return a pack as what a tool made."""
    return Result(OURS, pack.size, *pack.seconds)


@contextmanager
def _files(case: Case) -> Iterator[Path]:
    with TemporaryDirectory() as name:
        write_files(case, Path(name))
        yield Path(name)


def step_tables(quick: bool) -> tuple[Table, Table]:
    """Return the table of every step, and that of tools on every tenth."""
    steps: list[tuple[Cell, ...]] = []
    tools: list[tuple[Cell, ...]] = []
    for run, folder in step_runs():
        progress(f"each step of {run.name}")
        numbers = range(run.steps // 2, run.steps // 2 + 1) if quick else range(1, run.steps + 1)
        steps += [_step_row(run, folder, number) for number in numbers]
        tools += _tool_steps(run, folder, numbers if quick else numbers[EVERY - 1 :: EVERY])
    caption = "Steps of a training, in bf16"
    return Table("steps", caption, STEP_HEADERS, tuple(steps)), Table("step-tools", f"{caption}: tools", TOOL_STEP_HEADERS, tuple(tools))


def _step_row(run: Run, folder: Path, number: int) -> tuple[Cell, ...]:
    case = step_case(run, folder, number)
    with _files(case) as files:
        found = sizes_of(case, files)
    sizes = (found.pack.size, found.pack.payload, found.pack.payload / case.nbytes)
    return run.name, number, case.changed, *sizes, *floors(case, found), "yes" if is_near(case, found) else "no"


def _tool_steps(run: Run, folder: Path, numbers: Sequence[int]) -> list[tuple[Cell, ...]]:
    """Return the rows of tools, each the mean of some steps."""
    results: dict[str, list[Result]] = {}
    cases = []
    for number in numbers:
        progress(f"{run.name}, step {number}")
        case = step_case(run, folder, number)
        cases.append((case.nbytes, case.changed))
        with _files(case) as files:
            for result in (ours(whole(files / "base", files / "tuned")), *tool_results(case, files)):
                results.setdefault(result.tool, []).append(result)
    nbytes, changed = (statistics.mean(values) for values in zip(*cases, strict=True))
    pack = statistics.mean(result.size or 0 for result in results[OURS])
    rows: list[tuple[Cell, ...]] = []
    for tool, found in results.items():
        size, *times = (_mean([getattr(result, field) for result in found]) for field in ("size", "encode", "decode"))
        shares = (None, None, None) if size is None else (size / nbytes, nbytes / size, size / pack)
        rows.append((run.name, len(numbers), changed, tool, *shares, *times))
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
