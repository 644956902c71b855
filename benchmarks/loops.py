"""What each stage of decoding costs on one core, in nanoseconds per weight of a bf16 chunk: `python -m benchmarks.loops`.

In the fused call that `add_to` and `apply` use the stages cannot be told apart; here each is called alone. `cold` chunks come from
memory, in turns over 256 MB, `hot` ones are in the cache, as they are after a file was read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import cycle

import numpy as np

from benchmarks.results import Section, Table, main, median_seconds
from deltapack.dtypes import BY_NAME
from deltapack.format.digest import CHUNK
from deltapack.format.table import tile_lengths
from deltapack.kernels import cpu

BF16 = BY_NAME["bf16"]
RUNS = 60
HEADERS = ("density", "sample", "byte gaps", "int4 values", "add, hot", "add, cold", "copy, cold", "gaps + values + add, cold: x copy")


def measure(quick: bool = False) -> Section:
    """Return the table."""
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 0x3F80, CHUNK, np.uint16) for _ in range(8 if quick else 128)]
    rows = [_row(density, chunks, 5 if quick else RUNS) for density in (0.5, 0.1, 0.01)]
    return Section("Loops", "python -m benchmarks.loops", (Table("Stages on one core, ns per weight", HEADERS, tuple(rows)),), NOTES)


NOTES = ("Medians. Copy: `numpy.copyto` from one chunk to another.",)


def _row(density: float, chunks: list[np.ndarray], runs: int) -> tuple[float, ...]:
    lengths, keep = np.array(tile_lengths(CHUNK), np.int64), round(density * 2**32)
    positions, counts = cpu.sample_positions(7, keep, 0, lengths)
    gaps, nnz = cpu.byte_gaps(positions, counts), len(positions)
    room = np.empty(CHUNK + 256, np.uint32), np.empty(CHUNK + 256, np.float32)
    codes, scales = np.full(-(-nnz // 2), 0x35, np.uint8), np.full(int((-(-counts // 128)).sum()), 0x3880, np.uint16)
    if nnz % 2:
        codes[-1] &= 0x0F  # unused bits are zero
    values = cpu.code_values(codes, 4, scales, counts, np.float32(10))
    turn, other = cycle(chunks), cycle(chunks[len(chunks) // 2 :] + chunks[: len(chunks) // 2])
    hot = chunks[0].copy()
    stages: list[Callable[[], object]] = [
        lambda: cpu.sample_positions(7, keep, 0, lengths, room[0]),
        lambda: cpu.byte_gap_positions(gaps, counts, lengths, room[0]),
        lambda: cpu.code_values(codes, 4, scales, counts, np.float32(10), room[1]),
        lambda: cpu.add_in_place(hot, BF16, [(positions, values)]),
        lambda: cpu.add_in_place(next(turn), BF16, [(positions, values)]),
        lambda: np.copyto(next(turn), next(other)),
    ]
    costs = [_nanoseconds(stage, runs) for stage in stages]
    return density, *costs, (costs[1] + costs[2] + costs[4]) / costs[5]


def _nanoseconds(stage: Callable[[], object], runs: int) -> float:
    stage()
    return median_seconds(stage, runs) * 1e9 / CHUNK


if __name__ == "__main__":
    sys.exit(main(measure))
