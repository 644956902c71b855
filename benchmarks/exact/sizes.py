"""Bytes of pairs and of steps of a training, beside the entropy and beside other tools."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.exact.entropy import chunk_entropy, model_entropy
from benchmarks.exact.inputs import Case, chunks_of, step_case, step_runs
from benchmarks.exact.packs import Packed, packed
from benchmarks.exact.tools import Result, tool_results
from benchmarks.exact.training import Run
from benchmarks.results import Cell, Table, progress
from deltapack.codecs.exact import encode_exact_chunk

__all__ = ["SIZE_HEADERS", "STEP_HEADERS", "TOOL_HEADERS", "size_row", "size_tables", "step_tables"]

FORMS = ("equal", "planes", "dense", "sparse", "shared")
OURS = "deltapack, exact"
SIZE_HEADERS = (
    "pair", "type", "MB", "changed %", "payload", "entropy", "over %", "entropy, model", "over it %", "best other tool", "its share",
    "payload is x smaller", "alone", "chunks",
)  # fmt: skip
TOOL_HEADERS = ("pair", "type", "tool", "share", "x payload", "encode s", "decode s", "remark")
STEP_HEADERS = ("run", "step", "changed %", "payload bytes", "payload", "entropy", "over %", "entropy, model", "over it %")
TOOL_STEP_HEADERS = ("run", "steps", "changed %", "tool", "share", "x smaller than whole", "x payload", "encode s", "decode s")
EVERY = 10
"""Other tools are measured on every so many steps."""


@dataclass(frozen=True)
class Sizes:
    """Of a pair: the payload of a pack, and what bounds it, in bytes."""

    payload: Packed
    chunks: float
    model: float
    alone: int
    forms: str


def sizes_of(case: Case) -> Sizes:
    """Encode a pair, and chunk by chunk what there is to compare it with."""
    entropy, alone, forms = 0.0, 0, [0] * len(FORMS)
    for chunk in chunks_of(case.tensors):
        data = encode_exact_chunk(chunk.base, chunk.tuned, case.dtype)
        forms[data[0]] += 1
        entropy += chunk_entropy(chunk, data, case.dtype)
        alone += len(encode_exact_chunk(None, chunk.tuned, case.dtype))
    named = ", ".join(f"{count} {form}" for form, count in zip(FORMS, forms, strict=True) if count)
    return Sizes(packed(case), entropy, model_entropy(case), alone, named)


def size_tables(cases: Sequence[Case]) -> tuple[Table, Table]:
    """Return the table of pairs, and that of tools."""
    sizes, tools = [], []
    for case in cases:
        progress(f"{case.name} as {case.dtype}")
        found, results = sizes_of(case), list(tool_results(case))
        sizes.append(size_row(case, found, results))
        tools += tool_rows(case, found, results)
    return Table("pairs", "Pairs", SIZE_HEADERS, tuple(sizes)), Table("tools", "Pairs, tool by tool", TOOL_HEADERS, tuple(tools))


def size_row(case: Case, found: Sizes, results: Sequence[Result]) -> tuple[Cell, ...]:
    """Return a row of the table of pairs."""
    whole, own = case.nbytes, found.payload.size
    best = min((result for result in results if result.size is not None), key=lambda result: result.size or 0, default=None)
    peer: tuple[Cell, ...] = (None, None, None) if best is None or not best.size else (best.tool, best.size / whole, best.size / own)
    floors = (found.chunks / whole, over(own, found.chunks), found.model / whole, over(own, found.model))
    return case.name, case.dtype.name, whole / 1e6, case.changed, own / whole, *floors, *peer, found.alone / whole, found.forms


def over(size: float, floor: float) -> float | None:
    """Return how many percent a size is above a floor; none where there is nothing to store."""
    return 100 * (size / floor - 1) if floor else None


def tool_rows(case: Case, found: Sizes, results: Sequence[Result]) -> list[tuple[Cell, ...]]:
    own = Result(OURS, found.payload.size, found.payload.encode, found.payload.decode)
    rows: list[tuple[Cell, ...]] = []
    for result in (own, *results):
        share = None if result.size is None else result.size / case.nbytes
        times = None if result.size is None else result.size / found.payload.size
        rows.append((case.name, case.dtype.name, result.tool, share, times, result.encode, result.decode, result.remark))
    return rows


def step_tables(quick: bool) -> tuple[Table, Table]:
    """Return the table of every step, and that of tools on every tenth."""
    steps: list[tuple[Cell, ...]] = []
    tools: list[tuple[Cell, ...]] = []
    for run, folder in step_runs():
        progress(f"each step of {run.name}")
        numbers = (1, run.steps) if quick else range(1, run.steps + 1)
        steps += [_step_row(run, folder, number) for number in numbers]
        tools += _tool_steps(run, folder, numbers[-1:] if quick else numbers[EVERY - 1 :: EVERY])
    caption = "Steps of a training, in bf16"
    return Table("steps", caption, STEP_HEADERS, tuple(steps)), Table("step-tools", f"{caption}: tools", TOOL_STEP_HEADERS, tuple(tools))


def _step_row(run: Run, folder: Path, number: int) -> tuple[Cell, ...]:
    case = step_case(run, folder, number)
    found, whole = sizes_of(case), case.nbytes
    own = found.payload.size
    floors = (found.chunks / whole, over(own, found.chunks), found.model / whole, over(own, found.model))
    return run.name, number, case.changed, own, own / whole, *floors


def _tool_steps(run: Run, folder: Path, numbers: Sequence[int]) -> list[tuple[Cell, ...]]:
    """Return the rows of tools, each the mean of some steps."""
    results: dict[str, list[Result]] = {}
    cases = []
    for number in numbers:
        progress(f"{run.name}, step {number}")
        case = step_case(run, folder, number)
        own = packed(case)
        cases.append((case.nbytes, case.changed))
        for result in (Result(OURS, own.size, own.encode, own.decode), *tool_results(case)):
            results.setdefault(result.tool, []).append(result)
    whole, changed = (statistics.mean(values) for values in zip(*cases, strict=True))
    payload = statistics.mean(result.size or 0 for result in results[OURS])
    rows: list[tuple[Cell, ...]] = []
    for tool, found in results.items():
        size, *times = (_mean([getattr(result, field) for result in found]) for field in ("size", "encode", "decode"))
        shares = (None, None, None) if size is None else (size / whole, whole / size, size / payload)
        rows.append((run.name, len(numbers), changed, tool, *shares, *times))
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


