"""The tables that a launch of the Triton kernel reads, all of int64, and what of them a work keeps between launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from deltapack.device.ready import COLUMNS
from deltapack.device.regions import Region
from deltapack.device.resident import ResidentTerm
from deltapack.device.segments import ALIGNMENT
from deltapack.dtypes import DType
from deltapack.format.digest import TILE
from deltapack.kernels.reference.strata import stride_of

__all__ = ["SCALINGS", "TASKS", "TERMS", "VALUES", "Launch", "Todo", "WorkRows", "launch_of", "rows_of"]

Table = NDArray[np.int64]

TASKS = (
    *("target", "source", "width", "top", "bottom", "left", "right", "row stride", "column stride"),
    *("tile", "common", "start", "apply", "apply end", "undo", "undo end"),
)
"""Columns of the table of tasks, one for each region. `target` and `source` are the addresses that the pack's first element would have in
the live tensor, and in the one that the sum is added to. The pack's tensor has rows of `width` elements; the region is rows [top, bottom)
and columns [left, right) of it, and strides count elements. Its tiles begin with number `tile` of the pack's tensor, of which `common`
elements have terms; their programs begin with number `start`. Last come ranges of terms: to add, and to undo."""
TERMS = (
    *("values", "bits", "key low", "key high", "thresholds", "rows", "factor", "log"),
    *("width", "scaling", "scale", "left", "right", "height", "rank", "sizes"),
)
"""Columns of the table of terms: how codes are read, bits of a code, the mask key, the addresses of the gap table (of a stratified mask the
elements of a stratum times 2^16) and of `deltapack.device.resident.ROWS`, the bits of the factor, and the address that the first replaced
element of the whole term would have (they lie in the order of the kept ones); 0 where there is none. Then, of the tensor as a matrix, its
columns; how codes are scaled, and the bits of the scale of all; addresses of what rows and columns have, scales or factors; rows, number of
factors, and the address of their sizes (`deltapack.device.ready_parts.parts_of`)."""
VALUES = {"int": 0, "levels": 0, "sign": 1, "f32": 2, "bf16": 3, "f16": 4, "trits": 5, "factors": 6}
"""Ways to read a code, `deltapack.format.codecs.ValueCodec.form`, as the kernel knows them; levels are integers of 8 bits here."""
SCALINGS = {"": 0, "tensor": 1, "rows": 2, "outer": 3}
"""Ways to scale codes, `deltapack.format.terms.Term.scales`, as the kernel knows them."""
_START, _APPLY, _APPLY_END, _UNDO, _UNDO_END = (TASKS.index(name) for name in ("start", "apply", "apply end", "undo", "undo end"))
_FACTOR, _LOG = TERMS.index("factor"), TERMS.index("log")
_COUNT, _BEFORE, _KIND = (COLUMNS.index(name) for name in ("count", "before", "kind"))


@dataclass(frozen=True)
class WorkRows:
    """Rows of a work, without what differs from launch to launch.

    Attributes:
        task: `[16]`, see `TASKS`.
        terms: `[terms, 16]`, see `TERMS`.
        tiles: Tiles of the pack's tensor that are changed.
        places: `[terms]`, where the first replaced element of the whole term would lie in a log of the work, in elements.
        logged: Kept elements in these tiles, of all terms.
        types: Names of the types of the base and of the result.
        kinds: Bit i is set where `deltapack.device.ready.KINDS` number i occurs.
        values: Bit i is set where `VALUES` number i occurs.
        scales: Bit i is set where `SCALINGS` number i occurs; of codes only.
        drops: Whether any term drops rows.
        sliced: Whether the region is more than a range of consecutive elements.
        aligned: Whether the region starts at a multiple of 16 bytes.
    """

    task: Table
    terms: Table
    tiles: range
    places: Table
    logged: int
    types: tuple[str, str]
    kinds: int
    values: int
    scales: int
    drops: bool
    sliced: bool
    aligned: bool


def rows_of(region: Region, dtype: DType, terms: Sequence[tuple[ResidentTerm, float]], source: tuple[Region, DType] | None) -> WorkRows:
    """Return the rows of a work; see `deltapack.device.work.Work`."""
    base, base_type = source or (region, dtype)
    common = terms[0][0].ready.entry.common
    tiles = range(region.tiles.start, max(region.tiles.start, min(region.tiles.stop, -(-common // TILE))))
    task = np.array([_origin(region), _origin(base), *_bounds(region), tiles.start, common, 0, 0, 0, 0, 0], np.int64)
    tables = [term.ready.table[tiles.start : tiles.stop] for term, _ in terms]
    before = np.array([int(table[0, _BEFORE]) if len(table) else 0 for table in tables], np.int64)
    after = np.array([int(table[-1, _BEFORE] + table[-1, _COUNT]) if len(table) else 0 for table in tables], np.int64)
    counts = after - before
    rows = np.array([_term(term, factor) for term, factor in terms], np.int64)
    return WorkRows(
        task,
        rows,
        tiles,
        np.cumsum(counts) - counts - before,
        int(counts.sum()),
        (base_type.name, dtype.name),
        _bits({kind for table in tables for kind in np.flatnonzero(np.bincount(table[:, _KIND])).tolist()}),
        _bits(set(rows[:, 0].tolist())),
        _bits({SCALINGS[term.ready.term.scales] for term, _ in terms if term.ready.term.value_codec.scaled}),
        any(term.ready.drops for term, _ in terms),
        region.sliced or base.sliced,
        bool((task[:2] % ALIGNMENT == 0).all()),
    )


def _bits(numbers: set[int]) -> int:
    return sum(1 << number for number in numbers)


def _term(resident: ResidentTerm, factor: float) -> list[int]:
    ready, term = resident.ready, resident.ready.term
    codec, scaling = term.value_codec, SCALINGS[term.scales]
    step = stride_of(term.keep) if term.index == "stratified" else resident.address("thresholds")
    left, right = (resident.address("left"), resident.address("right")) if term.is_factors else map(resident.address, ("rows", "columns"))
    first = [VALUES[codec.form], codec.bits, term.key & 0xFFFFFFFF, term.key >> 32, step, resident.rows.data_ptr(), _f32_bits(factor), 0]
    return [*first, ready.width, scaling, _f32_bits(term.scale), left, right, ready.height, term.rank, resident.address("sizes")]


def _f32_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _bounds(region: Region) -> list[int]:
    rows, columns = region.memory.shape
    top, left, strides = region.top, region.left, list(region.memory.stride())
    if not region.sliced:
        top, left, strides = 0, region.start, [0, 1]
    return [region.width, top, top + rows, left, left + columns, *strides]


def _origin(region: Region) -> int:
    """Return the address that the first element of the pack's tensor would have."""
    memory, top, left = region.memory, region.top, region.left
    before = top * memory.stride(0) + left * memory.stride(1) if region.sliced else region.start
    return memory.data_ptr() - before * memory.element_size()


@dataclass(frozen=True)
class Todo:
    """What a launch does to one region.

    Attributes:
        add: What to add, or `None`.
        log: Where the elements that it replaces are kept; 0: nowhere.
        undo: What to undo, of the same tiles, or `None`.
        undo_log: Where what it replaced is kept.
    """

    add: WorkRows | None
    log: int
    undo: WorkRows | None
    undo_log: int


@dataclass(frozen=True)
class Launch:
    """The tables of a launch, and what is compiled for it.

    Attributes:
        owners: `[programs]`, the task of each.
        tasks: `[tasks, 16]`, see `TASKS`.
        terms: `[terms, 16]`, see `TERMS`.
        most: The most terms that a task adds.
        kinds: As in `WorkRows`, of all works.
        values: As in `WorkRows`, of all works.
        scales: As in `WorkRows`, of all works.
        drops: As in `WorkRows`, of any work.
        sliced: Whether any region is more than a range of consecutive elements.
        aligned: Whether all regions start at multiples of 16 bytes.
    """

    owners: Table
    tasks: Table
    terms: Table
    most: int
    kinds: int
    values: int
    scales: int
    drops: bool
    sliced: bool
    aligned: bool


def launch_of(todo: Sequence[Todo], itemsize: int) -> Launch:
    """Return a launch over regions whose elements have so many bytes; at least one."""
    adds, undos = [one.add for one in todo], [one.undo for one in todo]
    every = [rows for rows in (*adds, *undos) if rows is not None]
    first = [rows for rows in (one.add or one.undo for one in todo) if rows is not None]
    counts = np.array([len(rows.tiles) for rows in first], np.int64)
    lengths = np.array([0 if rows is None else len(rows.terms) for rows in (*adds, *undos)], np.int64)
    half, ends = len(todo), np.cumsum(lengths)
    tasks = np.stack([rows.task for rows in first])
    tasks[:, _START] = np.cumsum(counts) - counts
    tasks[:, _APPLY_END], tasks[:, _UNDO_END] = ends[:half], ends[half:]
    tasks[:, _APPLY], tasks[:, _UNDO] = ends[:half] - lengths[:half], ends[half:] - lengths[half:]
    logs = np.repeat(np.array([*(one.log for one in todo), *(one.undo_log for one in todo)], np.int64), lengths)
    terms = np.concatenate([rows.terms for rows in every])
    terms[:, _LOG] = np.where(logs != 0, logs + np.concatenate([rows.places for rows in every]) * itemsize, 0)
    return Launch(
        np.repeat(np.arange(half, dtype=np.int64), counts),
        tasks,
        terms,
        int(lengths[:half].max()),
        reduce(or_, (rows.kinds for rows in every)),
        reduce(or_, (rows.values for rows in every)),
        reduce(or_, (rows.scales for rows in every)),
        any(rows.drops for rows in every),
        any(rows.sliced for rows in every),
        all(rows.aligned for rows in every),
    )
