"""What each loop costs on one core, in nanoseconds per weight of a bf16 chunk: `python -m benchmarks.loops`.

In the fused call that `add_to` and `apply` use the stages cannot be told apart; here each is called alone. `cold` chunks come from
memory, in turns over 256 MB, `hot` ones are in the cache, as they are after a file was read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np

from benchmarks.command import main
from benchmarks.results import Section, Table, median_seconds
from deltapack.dtypes import BY_NAME
from deltapack.format.digest import CHUNK
from deltapack.format.table import tile_lengths
from deltapack.kernels import Encoded, cpu, rounding
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.formulas import Election, Sharing, WeightedSum
from deltapack.kernels.layout import Sparse
from deltapack.kernels.reference.choosing import MAGNITUDE, magnitude_bits

BF16 = BY_NAME["bf16"]
RUNS = 60
HEADERS = ("density", "sample", "byte gaps", "int4 values", "add, hot", "add, cold", "copy, cold", "gaps + values + add, cold: x copy")


def measure(quick: bool = False) -> Section:
    """Return the table."""
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 0x3F80, CHUNK, np.uint16) for _ in range(8 if quick else 128)]
    rows = [_row(density, chunks, 5 if quick else RUNS) for density in (0.5, 0.1, 0.01)]
    merges = [_merge_row(density, 3 if quick else RUNS // 3) for density in (0.5, 0.1, 0.01)]
    choosing = [_choosing_row(3 if quick else RUNS // 3)]
    trits = [_trits_row(density, chunks, 5 if quick else RUNS) for density in (0.255, 0.102, 0.051)]
    tables = (
        Table("stages", "Stages on one core, ns per weight", HEADERS, tuple(rows)),
        Table("formulas", "Formulas over eight decoded packs on one core, ns per weight", MERGE_HEADERS, tuple(merges)),
        Table("trits", "Trits on a drawn mask, ns per weight", TRITS_HEADERS, tuple(trits)),
        Table("choosing", "Choosing by magnitude or rank on one core, ns per weight", CHOOSING_HEADERS, tuple(choosing)),
    )
    return Section("Loops", "python -m benchmarks.loops", tables, NOTES)


NOTES = (
    "Medians. Copy: `numpy.copyto` from one chunk to another.",
    "Formulas: added to the base in the same call, or listed as positions and sums; masks are random, differences normal.",
    "Choosing: rows of 2,048; one difference in ten is kept.",
    "Trits: 22 % are not 0; densities of .25, .1 and .05 bits a weight. Masks, `decode` and `add` take one core, and `add` is decoding and "
    "adding in one call; with two threads both are at work, on chunks of their own.",
)
TRITS_HEADERS = (
    "density",
    "stratified mask",
    "seeded mask",
    "decode",
    "add, hot",
    "add, cold",
    "copy, cold",
    "add, cold: x copy",
    "2 threads: add, cold",
    "2 threads: copy, cold",
    "2 threads: add, cold: x copy",
)
MERGE_HEADERS = ("density", "weighted sum", "election", "election, listed", "sharing", "scalar products", "sums of squares")
CHOOSING_HEADERS = ("difference", "histogram, high bits", "histogram, low bits", "between two cuts", "ranks in rows", "a sample each")
PACKS = 8


def _merge_row(density: float, runs: int) -> tuple[float, ...]:
    rng, base = np.random.default_rng(1), np.full(CHUNK, 0x3F00, np.uint16)
    positions = [np.flatnonzero(rng.random(CHUNK) < density).astype(np.uint32) for _ in range(PACKS)]
    parts = [Sparse(places, rng.standard_normal(len(places)).astype(np.float32)) for places in positions]
    weights = np.full(PACKS, 1 / PACKS, np.float32)
    election, sharing = Election(weights, weights, weights), Sharing(1e-5, weights)
    stages: list[Callable[[], object]] = [
        lambda: cpu.add_blended(base, BF16, parts, WeightedSum(weights)),
        lambda: cpu.add_blended(base, BF16, parts, election),
        lambda: cpu.blend(CHUNK, parts, election),
        lambda: cpu.add_blended(base, BF16, parts, sharing),
        lambda: cpu.scalar_products(CHUNK, parts),
        lambda: [cpu.sum_of_squares(values) for _, values in parts],
    ]
    return density, *(_nanoseconds(stage, runs) for stage in stages)


def _choosing_row(runs: int) -> tuple[float, ...]:
    rng = np.random.default_rng(2)
    one, other = (rounding.from_f32(rng.standard_normal(CHUNK).astype(np.float32), BF16) for _ in range(2))
    delta = cpu.difference(one, BF16, other, BF16)
    cut = int(np.sort(magnitude_bits(delta))[-(CHUNK // 10)])
    rows = delta.reshape(-1, 2048)
    stages: list[Callable[[], object]] = [
        lambda: cpu.difference(one, BF16, other, BF16),
        lambda: cpu.histogram_high(delta),
        lambda: cpu.histogram_low(delta, cut >> 16),
        lambda: cpu.places_between(delta, cut, 100, MAGNITUDE, 0),
        lambda: cpu.row_ranks(rows),
        lambda: cpu.element_samples(7, 0, CHUNK),
    ]
    return tuple(_nanoseconds(stage, runs) for stage in stages)


def _row(density: float, chunks: list[np.ndarray], runs: int) -> tuple[float, ...]:
    lengths, keep = np.array(tile_lengths(CHUNK), np.int64), round(density * 2**32)
    positions, counts = cpu.sample_positions(7, keep, 0, lengths)
    gaps, nnz = cpu.byte_gaps(positions, counts), len(positions)
    out = Buffers().sparse(0, CHUNK)
    codes, scales = np.full(-(-nnz // 2), 0x35, np.uint8), np.full(int((-(-counts // 128)).sum()), 0x3880, np.uint16)
    if nnz % 2:
        codes[-1] &= 0x0F  # unused bits are zero
    values = cpu.code_values(codes, 4, scales, counts, np.float32(10))
    turn, other = cycle(chunks), cycle(chunks[len(chunks) // 2 :] + chunks[: len(chunks) // 2])
    hot = chunks[0].copy()
    stages: list[Callable[[], object]] = [
        lambda: cpu.sample_positions(7, keep, 0, lengths, out.positions),
        lambda: cpu.byte_gap_positions(gaps, counts, lengths, out.positions),
        lambda: cpu.code_values(codes, 4, scales, counts, np.float32(10), out.values),
        lambda: cpu.add_in_place(hot, BF16, [Sparse(positions, values)]),
        lambda: cpu.add_in_place(next(turn), BF16, [Sparse(positions, values)]),
        lambda: np.copyto(next(turn), next(other)),
    ]
    costs = [_nanoseconds(stage, runs) for stage in stages]
    return density, *costs, (costs[1] + costs[2] + costs[4]) / costs[5]


def _trits_row(density: float, chunks: list[np.ndarray], runs: int) -> tuple[float, ...]:
    rng, lengths, keep = np.random.default_rng(3), np.array(tile_lengths(CHUNK), np.int64), round(density * 2**32)
    positions, counts = cpu.stratified_positions(7, keep, 0, lengths)
    codes = rng.choice([-1, 1], len(positions)) * (rng.random(len(positions)) < 0.22)
    raw, nothing = cpu.pack_trits(codes.astype(np.int8)), np.zeros(0, np.uint8)
    encoded = Encoded("stratified", 0, 7, keep, 0, nothing, 0, raw, nothing, np.float32(4), counts, lengths, trits=True, scale=1e-3)
    rooms, hot = [Buffers().sparse(number, CHUNK) for number in range(2)], chunks[0].copy()
    half, quarter = len(chunks) // 2, len(chunks) // 4
    turns = [cycle(chunks[:half]), cycle(chunks[half:])]
    others = [cycle(chunks[quarter:half] + chunks[:quarter]), cycle(chunks[half + quarter :] + chunks[half : half + quarter])]

    def add(thread: int = 0) -> None:
        cpu.add_encoded(next(turns[thread]), BF16, encoded, rooms[thread])

    def copy(thread: int = 0) -> None:
        np.copyto(next(turns[thread]), next(others[thread]))

    stages: list[Callable[[], object]] = [
        lambda: cpu.stratified_positions(7, keep, 0, lengths, rooms[0].positions),
        lambda: cpu.sample_positions(7, keep, 0, lengths, rooms[0].positions),
        lambda: cpu.decode_encoded(encoded, rooms[0]),
        lambda: cpu.add_encoded(hot, BF16, encoded, rooms[0]),
        add,
        copy,
    ]
    costs = [_nanoseconds(stage, runs) for stage in stages]
    both = [_with_two_threads(stage, runs) for stage in (add, copy)]
    return density, *costs, costs[4] / costs[5], *both, both[0] / both[1]


def _with_two_threads(stage: Callable[[int], object], runs: int) -> float:
    """Return nanoseconds per weight of all that two threads do."""
    each = 16

    def together() -> None:
        list(pool.map(lambda thread: [stage(thread) for _ in range(each)], range(2)))

    with ThreadPoolExecutor(2) as pool:
        return _nanoseconds(together, max(3, runs // 8)) / (2 * each)


def _nanoseconds(stage: Callable[[], object], runs: int) -> float:
    stage()
    return median_seconds(stage, runs) * 1e9 / CHUNK


if __name__ == "__main__":
    sys.exit(main(measure))
