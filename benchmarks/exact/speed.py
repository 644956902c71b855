"""How fast exact chunks are made and read on one core, in turns with other tools and with a copy in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.exact.inputs import Case, joined, write_files
from benchmarks.exact.packs import packed
from benchmarks.exact.tools import Result, elements_tools
from benchmarks.results import Cell, Table, progress

__all__ = ["SPEED_HEADERS", "speed_rows", "speed_table"]

SPEED_HEADERS = ("pair", "type", "tool", "runs", "encode MB/s", "decode MB/s", "copy MB/s", "encode: x copy", "decode: x copy")


def speed_table(cases: Sequence[Case], rounds: int) -> Table:
    """Return the medians of several rounds; in each, all tools take their turn."""
    rows: list[tuple[Cell, ...]] = []
    for case in cases:
        progress(f"speed: {case.name} as {case.dtype}")
        rows += speed_rows(case, rounds)
    return Table("speed", "Speed of one core", SPEED_HEADERS, tuple(rows))


def speed_rows(case: Case, rounds: int) -> list[tuple[Cell, ...]]:
    """Return a row for each tool."""
    full = Case(case.name, case.dtype, tuple(joined(case.tensors)))
    found: dict[str, list[tuple[float, float, float]]] = {}
    with TemporaryDirectory() as name:
        write_files(case, Path(name))
        packed(case)  # loops are compiled, caches warm
        for _ in range(rounds):
            copy = _copied(case)
            own = [("deltapack, tensors", case, packed(case)), ("deltapack, full chunks", full, packed(full))]
            results = [(tool, what, Result(tool, one.size, one.encode, one.decode)) for tool, what, one in own]
            results += [(one.tool, case, one) for one in elements_tools(case, Path(name))]
            for tool, what, one in results:
                if one.encode and one.decode:
                    found.setdefault(tool, []).append((what.nbytes / one.encode / 1e6, what.nbytes / one.decode / 1e6, copy))
    rows: list[tuple[Cell, ...]] = []
    for tool, samples in found.items():
        encode, decode, copy = (statistics.median(values) for values in zip(*samples, strict=True))
        times = (statistics.median(own[2] / own[side] for own in samples) for side in (0, 1))
        rows.append((case.name, case.dtype.name, tool, len(samples), encode, decode, copy, *times))
    return rows


def _copied(case: Case) -> float:
    """Return the MB/s of copying all tensors to memory that was used before."""
    spare = [tensor.tuned.copy() for tensor in case.tensors]
    start = time.thread_time()
    for tensor, out in zip(case.tensors, spare, strict=True):
        out[:] = tensor.tuned
    return case.nbytes / (time.thread_time() - start) / 1e6
