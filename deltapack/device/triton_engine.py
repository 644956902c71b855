"""Works as launches of the Triton kernel: one for all regions of the same element type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.device import triton_kernels
from deltapack.device.ready import ALIGNMENT
from deltapack.device.regions import Region
from deltapack.device.resident import ResidentTerm
from deltapack.device.torch_engine import wrong_count
from deltapack.device.triton_rounding import DTYPES
from deltapack.device.work import Saved, SavedCopy, UndoMode, Work, by_region, key
from deltapack.dtypes import DType
from deltapack.format.digest import TILE

__all__ = ["TritonEngine"]

Table = NDArray[np.int64]
Terms = Sequence[tuple[ResidentTerm, float]]
_NO_VIOLATION = 1 << 62
_INTERPRETED_BLOCK = 8192
"""The interpreter pays for each operation, not for each element."""
_PROGRAMS_PER_PROCESSOR = 2


@dataclass(frozen=True)
class _SavedLog:
    """The replaced elements of each term, in the order of its kept elements; their places are regenerated."""

    engine: TritonEngine
    work: Work
    logs: tuple[torch.Tensor, ...]

    @property
    def region(self) -> Region:
        return self.work.region

    @property
    def nbytes(self) -> int:
        return sum(log.numel() * log.element_size() for log in self.logs)

    def put_back(self) -> None:
        self.engine.switch([self], [], "nothing", [])


@dataclass(frozen=True)
class _Task:
    """A region, what to undo there, what to add, and how to undo that."""

    region: Region
    dtype: DType
    undo: _SavedLog | None
    work: Work | None
    saved: Saved | None

    @property
    def source(self) -> tuple[Region, DType]:
        return (self.work.source if self.work is not None else None) or (self.region, self.dtype)

    @property
    def types(self) -> tuple[str, str]:
        return self.source[1].name, self.dtype.name

    @property
    def add(self) -> Terms:
        return self.work.terms if self.work is not None else ()

    @property
    def remove(self) -> Terms:
        return self.undo.work.terms if self.undo is not None else ()

    @property
    def tiles(self) -> NDArray[np.int64]:
        common = (*self.add, *self.remove)[0][0].ready.entry.common
        tiles = self.region.tiles
        return np.arange(tiles.start, min(tiles.stop, -(-common // TILE)), dtype=np.int64)


class TritonEngine:
    """See `deltapack.device.work.Engine`.

    Args:
        device: Where the regions are.
        block: Gaps that are decoded at once; for tests.
    """

    name = "triton"

    def __init__(self, device: torch.device, block: int | None = None) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._block = block or (triton_kernels.BLOCK if on_gpu else _INTERPRETED_BLOCK)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        self._programs = processors * _PROGRAMS_PER_PROCESSOR
        self._scratch = torch.empty(0, dtype=torch.int32, device=device)

    def switch(self, undo: Sequence[Saved], works: Sequence[Work], mode: UndoMode, done: list[Saved]) -> None:
        """See `deltapack.device.work.Engine.switch`."""
        before, tasks = by_region(undo), []
        with torch.no_grad():
            for work in works:
                earlier = before.pop(key(work.region), [])
                tasks.append(self._task(work, earlier, mode))
            for rest in before.values():
                for saved in rest:
                    if isinstance(saved, _SavedLog):
                        tasks.append(_Task(saved.region, saved.work.dtype, saved, None, None))
                    else:
                        saved.put_back()
            for types in sorted({task.types for task in tasks}):
                self._launch([task for task in tasks if task.types == types], done)

    def _task(self, work: Work, earlier: Sequence[Saved], mode: UndoMode) -> _Task:
        log = None
        for saved in earlier:
            if isinstance(saved, _SavedLog):
                log = saved
            else:
                saved.put_back()
        new: Saved | None = None
        if work.saves_copy(mode):
            if log is not None:
                log.put_back()
            return _Task(work.region, work.dtype, None, work, SavedCopy.of(work.region, earlier))
        if mode != "nothing":
            tiles = _Task(work.region, work.dtype, None, work, None).tiles
            sizes = [int(term.column("count")[tiles].sum()) for term, _ in work.terms]
            logs = [torch.empty(size, dtype=work.region.memory.dtype, device=self._device) for size in sizes]
            new = _SavedLog(self, work, tuple(logs))
        return _Task(work.region, work.dtype, log, work, new)

    def _launch(self, tasks: Sequence[_Task], done: list[Saved]) -> None:
        plan = _Plan.of(tasks)
        if not len(plan.tiles):
            return
        counts = [len(task.add) for task in tasks]
        collect = max(counts) > 1
        programs = min(len(plan.tiles), self._programs)
        if collect and len(self._scratch) < programs * TILE:
            self._scratch = torch.full((programs * TILE,), -1, dtype=torch.int32, device=self._device)
        violation = torch.full((1,), _NO_VIOLATION, dtype=torch.int64, device=self._device)
        tables = [torch.from_numpy(table.reshape(-1)).to(self._device) for table in (plan.regions, plan.tiles, plan.parts, plan.terms)]
        source, target = tasks[0].types
        # The interpreter computes with numpy, which warns of infinities.
        with np.errstate(over="ignore", invalid="ignore"):
            triton_kernels.switch_tiles[(programs if collect or self._device.type != "cuda" else len(plan.tiles),)](
                *tables,
                self._scratch,
                violation,
                len(plan.tiles),
                SOURCE=DTYPES[source],
                TARGET=DTYPES[target],
                KINDS=plan.kinds,
                VALUES=plan.values,
                UNDO=any(task.remove for task in tasks),
                LOG=any(isinstance(task.saved, _SavedLog) for task in tasks),
                COLLECT=collect,
                SLICED=any(region.sliced for task in tasks for region in (task.region, task.source[0])),
                ALIGNED=bool((plan.regions[:, :2] % ALIGNMENT == 0).all()),
                BLOCK=self._block,
                **triton_kernels.options(alike=plan.alike, heavy=collect or "f64" in tasks[0].types),
            )
        # A launch runs as a whole or not at all, and only then is there something to undo.
        done.extend(task.saved for task in tasks if task.saved is not None)
        found = int(violation.item())
        if found != _NO_VIOLATION:
            region = int(plan.tiles[found, 0])
            raise wrong_count(next(term for term, _ in tasks[region].add if term.ready.term.index_codec.kept == "random"))


@dataclass(frozen=True)
class _Plan:
    """The tables of a launch; see `deltapack.device.triton_kernels`."""

    regions: Table
    tiles: Table
    parts: Table
    terms: Table
    kinds: int
    values: int

    @property
    def alike(self) -> bool:
        """Whether all terms have the same kind of positions and of values."""
        return all(bits & (bits - 1) == 0 for bits in (self.kinds, self.values))

    @classmethod
    def of(cls, tasks: Sequence[_Task]) -> _Plan:
        terms: list[list[int]] = []
        tiles: list[Table] = []
        parts: list[Table] = []
        end = kinds = values = 0
        for number, task in enumerate(tasks):
            numbers, adding = task.tiles, len(task.add)
            both, logs = [*task.add, *task.remove], [*_logs(task.saved, adding), *_logs(task.undo, len(task.remove))]
            block = np.empty((len(numbers), len(both), len(triton_kernels.PARTS)), np.int64)
            for place, ((term, factor), log) in enumerate(zip(both, logs, strict=True)):
                block[:, place] = _parts(term, numbers, len(terms), log)
                terms.append(_term(term, factor))
                values |= 1 << terms[-1][0]
                kinds |= _bits(block[:, place, 1])
            first = end + np.arange(len(numbers)) * len(both)
            common = both[0][0].ready.entry.common
            lengths = np.minimum(TILE, common - numbers * TILE)
            rows = (np.full_like(numbers, number), numbers, lengths, first, first + adding, first + adding, first + len(both))
            tiles.append(np.stack(rows, axis=1))
            parts.append(block.reshape(-1, len(triton_kernels.PARTS)))
            end += len(parts[-1])
        regions = np.array([_region(task) for task in tasks], np.int64)
        return cls(regions, np.concatenate(tiles), np.concatenate(parts), np.array(terms, np.int64), kinds, values)


def _logs(saved: Saved | None, count: int) -> Sequence[torch.Tensor | None]:
    return saved.logs if isinstance(saved, _SavedLog) else [None] * count


def _bits(numbers: Iterable[int]) -> int:
    out = 0
    for number in np.unique(np.asarray(numbers)).tolist():
        out |= 1 << number
    return out


def _parts(term: ResidentTerm, tiles: NDArray[np.int64], number: int, log: torch.Tensor | None) -> Table:
    columns = {
        "term": np.full_like(tiles, number),
        "kind": term.column("kind")[tiles],
        "count": term.column("count")[tiles],
        "items": term.column("items")[tiles],
        "index": term.addresses("index")[tiles],
        "codes": term.addresses("codes")[tiles],
        "first": term.column("first")[tiles],
        "scales": term.addresses("scales")[tiles],
        "log": np.zeros_like(tiles),
    }
    if log is not None and len(tiles):
        before = term.column("before")[tiles]
        columns["log"] = log.data_ptr() + (before - before[0]) * log.element_size()
    return np.stack([columns[name] for name in triton_kernels.PARTS], axis=1)


def _term(term: ResidentTerm, factor: float) -> list[int]:
    ready, codec = term.ready.term, term.ready.term.value_codec
    bits = int(np.float32(factor).view(np.uint32))
    return [triton_kernels.VALUES[codec.form], codec.bits, ready.key & 0xFFFFFFFF, ready.key >> 32, term.thresholds, bits]


def _region(task: _Task) -> list[int]:
    region, (source, _) = task.region, task.source
    rows, columns = region.memory.shape
    top, left, width = region.top, region.left, region.width
    strides = list(region.memory.stride())
    if not region.sliced:
        top, left, strides = 0, region.start, [0, 1]
    bounds = [width, top, top + rows, left, left + columns, *strides]
    return [_origin(region), _origin(source), *bounds]


def _origin(region: Region) -> int:
    """Return the address that the first element of the pack's tensor would have."""
    memory, top, left = region.memory, region.top, region.left
    before = top * memory.stride(0) + left * memory.stride(1) if region.sliced else region.start
    return memory.data_ptr() - before * memory.element_size()
