"""Jobs on a model in memory by the code that restores checkpoints: on the CPU, and for what is no sum of terms of packs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.checkpoint import Checkpoint
from deltapack.composing.chunks import restore_chunk
from deltapack.composing.tensor_job import FromBase, FromPack, PackTerm, TensorJob
from deltapack.device.model_tensors import ModelTensors
from deltapack.device.regions import Region, read_chunk, write_chunk
from deltapack.device.work import Saved, SavedCopy, UndoMode, by_region
from deltapack.errors import UnsupportedError
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.parallel import for_each

__all__ = ["HostEngine", "HostWork", "Place", "place"]


class Place(NamedTuple):
    """A base tensor that a result takes the place of.

    Attributes:
        name: Its name.
        digest: Its root digest; empty where nobody says.
        regions: Where it lives; none: not in this process.
    """

    name: str
    digest: str
    regions: tuple[Region, ...]


def place(job: TensorJob, model: ModelTensors) -> Place:
    """Return the base tensor that a tensor of the result takes the place of.

    Raises:
        UnsupportedError: It has another shape or dtype, or is new.
    """
    name, digest = _replaced(job)
    name = model.aliases.get(name, name)
    held = model.tensors.get(name)
    if held is None or held.shape != job.shape or held.dtype != job.dtype:
        raise UnsupportedError(
            "a live model keeps its tensors as they are, and the pack needs another",
            path=job.pack,
            tensor=job.name,
            expected=f"{job.dtype} {list(job.shape)}",
            found="no such tensor" if held is None else f"{held.dtype} {list(held.shape)}",
            hint="Build the model with deltapack.load_model.",
        )
    return Place(name, digest, model.places(name))


def _replaced(job: TensorJob) -> tuple[str, str]:
    """Return name and digest of the base tensor that a job starts from or replaces."""
    if isinstance(job.source, FromBase):
        return job.source.base.name, job.source.digest
    base = job.source.entry.base
    return (job.name, "") if base is None else (base.name, base.digest)


@dataclass(frozen=True)
class HostWork:
    """A tensor to restore where it lives.

    Attributes:
        job: What to make.
        region: Where to.
        base: What it is made of, where the region does not hold all that this takes.
    """

    job: TensorJob
    region: Region
    base: Checkpoint | None = None


@dataclass(frozen=True)
class _SavedChanges:
    """What changed, by chunk: positions of elements and what they were, or all elements of the chunk."""

    work: HostWork
    pieces: list[tuple[int, NDArray[np.uint32] | None, Elements]] = field(default_factory=list)

    @property
    def region(self) -> Region:
        return self.work.region

    @property
    def nbytes(self) -> int:
        return sum(elements.nbytes + (positions.nbytes if positions is not None else 0) for _, positions, elements in self.pieces)

    def put_back(self) -> None:
        for chunk, positions, elements in self.pieces:
            now = elements if positions is None else read_chunk(self.region, self.work.job, chunk)
            if positions is not None:
                now[positions] = elements
            write_chunk(self.region, chunk, now)

    def save(self, chunk: int, positions: NDArray[np.uint32], old: Elements, mode: UndoMode) -> None:
        """Save what a chunk was, before it is changed."""
        changed = old[positions]
        whole = mode == "auto" and positions.nbytes + changed.nbytes >= old.nbytes
        self.pieces.append((chunk, None, old) if whole else (chunk, positions, changed))


@dataclass(frozen=True)
class _Held:
    """Stands for the base: the elements of the chunk that is being restored."""

    elements: Elements

    def read_into(self, name: str, start: int, out: Elements) -> None:
        out[:] = self.elements


@dataclass(frozen=True)
class HostEngine:
    """Restores chunks in threads and writes them where the tensors live; see `deltapack.device.engine.Engine`."""

    workers: int

    def switch(self, undo: Sequence[Saved], works: Sequence[HostWork], mode: UndoMode, done: list[Saved]) -> None:
        """See `deltapack.device.engine.Engine.switch`."""
        self._put_back(undo)
        before, logs = by_region(undo), list[_SavedChanges | None]()
        for work in works:
            # A tensor that is replaced as a whole changes nearly everywhere, as does one that a product of factors is added to.
            dense = isinstance(work.job.source, FromPack) or any(
                isinstance(own, PackTerm) and own.term.is_factors for own in work.job.terms
            )
            copied = mode == "copy" or (mode == "auto" and dense)
            logs.append(None if copied or mode == "nothing" else _SavedChanges(work))
            if copied:
                done.append(SavedCopy.of(work.region, before.get(work.region.key, ())))
        done += [log for log in logs if log is not None]
        buffers = Buffers()

        def restore(task: tuple[HostWork, _SavedChanges | None, int]) -> None:
            # Whether inference mode is on is known to each thread by itself.
            with torch.inference_mode():
                _restore(*task, mode, buffers)

        tasks = [(work, log, chunk) for work, log in zip(works, logs, strict=True) for chunk in work.region.chunks]
        for_each(restore, tasks, self.workers)

    def _put_back(self, undo: Sequence[Saved]) -> None:
        def put_back(log: Saved) -> None:
            with torch.inference_mode():
                log.put_back()

        for saved in undo:
            if not isinstance(saved, _SavedChanges):  # torch has threads of its own
                saved.put_back()
        for_each(put_back, [saved for saved in undo if isinstance(saved, _SavedChanges)], self.workers)


def _restore(work: HostWork, log: _SavedChanges | None, chunk: int, mode: UndoMode, buffers: Buffers) -> None:
    old = read_chunk(work.region, work.job, chunk)
    new = restore_chunk(_Held(old) if work.base is None else work.base, work.job, chunk, buffers).elements
    if work.region.memory.numel() < work.job.numel:
        # Elements that are not held must not seem to change.
        old = read_chunk(work.region, work.job, chunk, around=new)
    bits = f"<u{old.dtype.itemsize}"
    positions = np.flatnonzero(old.view(bits) != new.view(bits)).astype(np.uint32)
    if len(positions):
        # First what undoes it, then the change.
        if log is not None:
            log.save(chunk, positions, old, mode)
        write_chunk(work.region, chunk, new)
