"""Works as launches of the Triton kernel: one for all regions of the same element types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from deltapack.device import triton_kernels
from deltapack.device.exact_launch import launch_exact
from deltapack.device.exact_work import ExactWork, save
from deltapack.device.regions import Region
from deltapack.device.tables import Launch, Todo, WorkRows, launch_of
from deltapack.device.torch_decoding import wrong_count
from deltapack.device.torch_kernels import BITS
from deltapack.device.triton_rounding import DTYPES
from deltapack.device.work import Saved, SavedCopy, UndoMode, Work, by_region
from deltapack.dtypes import BY_NAME
from deltapack.format.digest import TILE

__all__ = ["TritonEngine"]

_NO_VIOLATION = 1 << 62
_INTERPRETED_BLOCK, _INTERPRETED_WARPS = 8192, 16
"""The interpreter pays for each operation, not for each element."""


@dataclass(frozen=True)
class _SavedLog:
    """The replaced elements of each term, in the order of its kept elements; their places are regenerated.

    Attributes:
        engine: What undoes it.
        work: What was done.
        buffer: The logs of all works of a launch, elements as integers of their width.
        start: Where the work's begins.
    """

    engine: TritonEngine
    work: Work
    buffer: torch.Tensor
    start: int

    @property
    def region(self) -> Region:
        return self.work.region

    @property
    def nbytes(self) -> int:
        return self.work.rows.logged * self.buffer.element_size()

    @property
    def address(self) -> int:
        """Where the work's log begins; 0 where it is empty."""
        return self.buffer.data_ptr() + self.start * self.buffer.element_size() if self.buffer.numel() else 0

    def put_back(self) -> None:
        self.engine.switch([self], [], "nothing", [])


class _Task(NamedTuple):
    """A region's work to undo, its work to do, and how that will be undone: by a copy, by a log, or not at all."""

    undo: _SavedLog | None
    work: Work | None
    copy: SavedCopy | None
    logs: bool

    @property
    def rows(self) -> WorkRows:
        work = self.work or (self.undo.work if self.undo is not None else None)
        assert work is not None
        return work.rows


def _todo(task: _Task, log: _SavedLog | None) -> Todo:
    add, undo = task.work, task.undo
    return Todo(
        add.rows if add is not None else None,
        log.address if log is not None else 0,
        undo.work.rows if undo is not None else None,
        undo.address if undo is not None else 0,
    )


class TritonEngine:
    """See `deltapack.device.engine.Engine`.

    Args:
        device: Where the regions are.
        block: Gaps that are decoded at once; for tests.
        window: Elements whose sums are collected at once; for tests.
    """

    name = "triton"

    def __init__(self, device: torch.device, block: int | None = None, window: int | None = None) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._block = block or (triton_kernels.BLOCK if on_gpu else _INTERPRETED_BLOCK)
        self._window = window or (triton_kernels.WINDOW if on_gpu else TILE)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        self._programs = triton_kernels.PROGRAMS * processors
        self._scratch = torch.empty(0, dtype=torch.int32, device=device)

    def switch(self, undo: Sequence[Saved], works: Sequence[Work | ExactWork], mode: UndoMode, done: list[Saved]) -> None:
        """See `deltapack.device.engine.Engine.switch`."""
        before, tasks = by_region(undo), dict[tuple[str, str], list[_Task]]()
        exact = [work for work in works if isinstance(work, ExactWork)]
        with torch.no_grad():
            for own in exact:
                save(own, mode, before.pop(own.region.key, ()), done)
            self._decode(exact)
            for work in works:
                if isinstance(work, ExactWork):
                    continue
                task = self._task(work, before.pop(work.region.key, ()), mode)
                tasks.setdefault(task.rows.types, []).append(task)
            for rest in before.values():
                for saved in rest:
                    if isinstance(saved, _SavedLog):
                        tasks.setdefault(saved.work.rows.types, []).append(_Task(saved, None, None, False))
                    else:
                        saved.put_back()
            for types in sorted(tasks):
                self._launch(tasks[types], done)

    def _decode(self, works: Sequence[ExactWork]) -> None:
        todo = [(work.elements(), work.exact) for work in works]
        with self._launching():
            launch_exact(todo, self._device, 1 if self._device.type == "cuda" else _INTERPRETED_WARPS)
        for work, (elements, _) in zip(works, todo, strict=True):
            work.give_back(elements)

    @contextmanager
    def _launching(self) -> Iterator[None]:
        # The interpreter computes with numpy, which warns of infinities. Triton launches on the current device.
        on_device = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        with np.errstate(over="ignore", invalid="ignore"), on_device:
            yield

    def _task(self, work: Work, earlier: Sequence[Saved], mode: UndoMode) -> _Task:
        log = None
        for saved in earlier:
            if isinstance(saved, _SavedLog) and saved.work.rows.tiles == work.rows.tiles:
                log = saved
            else:
                saved.put_back()
        if not work.saves_copy(mode):
            return _Task(log, work, None, mode != "nothing")
        if log is not None:
            log.put_back()
        return _Task(None, work, SavedCopy.of(work.region, earlier), False)

    def _launch(self, tasks: Sequence[_Task], done: list[Saved]) -> None:
        itemsize = BY_NAME[tasks[0].rows.types[1]].itemsize
        logs = self._logs(tasks, itemsize)
        launch = launch_of([_todo(task, log) for task, log in zip(tasks, logs, strict=True)], itemsize)
        found = self._run(tasks, launch) if len(launch.owners) else _NO_VIOLATION
        # A launch runs as a whole or not at all, and only then is there something to undo.
        done.extend(saved for task, log in zip(tasks, logs, strict=True) if (saved := log or task.copy) is not None)
        if found != _NO_VIOLATION:
            work = tasks[int(launch.owners[found])].work
            assert work is not None
            raise wrong_count(next(term for term, _ in work.terms if term.ready.term.index_codec.kept == "random"))

    def _logs(self, tasks: Sequence[_Task], itemsize: int) -> list[_SavedLog | None]:
        """Make one buffer for the logs of all tasks: allocating each would take longer than the launch."""
        sizes = [task.rows.logged if task.logs else 0 for task in tasks]
        buffer = torch.empty(sum(sizes), dtype=BITS[itemsize], device=self._device)
        logs: list[_SavedLog | None] = []
        start = 0
        for task, size in zip(tasks, sizes, strict=True):
            logs.append(_SavedLog(self, task.work, buffer, start) if task.logs and task.work is not None else None)
            start += size
        return logs

    def _run(self, tasks: Sequence[_Task], launch: Launch) -> int:
        """Launch; return the number of the first tile where a term keeps another number of elements than its table says."""
        collect, (source, target) = launch.most > 1, tasks[0].rows.types
        programs = min(len(launch.owners), self._programs) if collect else len(launch.owners)
        if collect and len(self._scratch) < programs * self._window:
            self._scratch = torch.full((programs * self._window,), -1, dtype=torch.int32, device=self._device)
        states = torch.empty(programs * launch.most * triton_kernels.STATE if collect else 0, dtype=torch.int32, device=self._device)
        violation = torch.full((1,), _NO_VIOLATION, dtype=torch.int64, device=self._device)
        ends = launch.tasks.size, launch.tasks.size + launch.terms.size
        tables = np.concatenate([table.reshape(-1) for table in (launch.tasks, launch.terms, launch.owners)])
        sent = torch.from_numpy(tables).to(self._device)
        with self._launching():
            triton_kernels.switch_tiles[(programs,)](
                sent,
                sent[ends[0] :],
                sent[ends[1] :],
                self._scratch,
                states,
                violation,
                len(launch.owners),
                launch.most,
                SOURCE=DTYPES[source],
                TARGET=DTYPES[target],
                KINDS=launch.kinds,
                VALUES=launch.values,
                SCALES=launch.scales,
                DROPS=launch.drops,
                UNDO=any(task.undo is not None for task in tasks),
                LOG=any(task.logs for task in tasks),
                COLLECT=collect,
                SLICED=launch.sliced,
                ALIGNED=launch.aligned,
                BLOCK=self._block,
                WINDOW=self._window,
                **triton_kernels.options(
                    kinds=launch.kinds,
                    values=launch.values,
                    scales=launch.scales,
                    heavy="f64" in (source, target) or (collect and source != target),
                ),
            )
        return int(violation.item())
