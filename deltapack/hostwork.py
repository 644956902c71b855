"""Jobs on a model in memory by the code that restores checkpoints: on the CPU, and for what is no sum of terms of packs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.buffers import Buffers
from deltapack.checkpoint import Checkpoint
from deltapack.device.regions import Region
from deltapack.device.work import Keep, Saved, SavedCopy, by_region, key
from deltapack.errors import UnsupportedError
from deltapack.jobs import TensorJob
from deltapack.parallel import ordered_map
from deltapack.restoring import restore_chunk
from deltapack.slots import Slots, read_chunk, write_chunk

__all__ = ["HostEngine", "HostWork", "place"]

Elements = NDArray[np.generic]


def place(job: TensorJob, slots: Slots) -> tuple[str, Region | None]:
    """Return the base tensor that a tensor of the result takes the place of, and where that lives (`None`: not in this process).

    Raises:
        UnsupportedError: It has another shape or dtype, or is new.
    """
    replaced = job.whole.base.name if job.whole is not None and job.whole.base is not None else job.name
    name = job.base.name if job.base is not None else slots.aliases.get(replaced, replaced)
    held = slots.tensors.get(name)
    if held is None or held.shape != job.shape or held.dtype != job.dtype:
        raise UnsupportedError(
            "a live model keeps its tensors as they are, and the pack needs another",
            path=job.pack,
            tensor=job.name,
            expected=f"{job.dtype} {list(job.shape)}",
            found="no such tensor" if held is None else f"{held.dtype} {list(held.shape)}",
            hint="Build the model with deltapack.load_model.",
        )
    return name, slots.regions.get(name)


@dataclass(frozen=True)
class HostWork:
    """A tensor to restore where it lives."""

    job: TensorJob
    region: Region


@dataclass(frozen=True)
class _SavedChanges:
    """The elements that changed, by chunk: positions and what they were."""

    work: HostWork
    pieces: list[tuple[int, NDArray[np.uint32], Elements]] = field(default_factory=list)

    @property
    def region(self) -> Region:
        return self.work.region

    @property
    def nbytes(self) -> int:
        return sum(positions.nbytes + elements.nbytes for _, positions, elements in self.pieces)

    def put_back(self) -> None:
        for chunk, positions, elements in self.pieces:
            now = read_chunk(self.region, self.work.job, chunk)
            now[positions] = elements
            write_chunk(self.region, chunk, now)


@dataclass(frozen=True)
class _Held:
    """Stands for the base: the elements of the chunk that is being restored."""

    elements: Elements

    def read_into(self, name: str, start: int, out: Elements) -> None:
        out[:] = self.elements


@dataclass(frozen=True)
class HostEngine:
    """Restores chunks in threads and writes them where the tensors live; see `deltapack.device.work.Engine`."""

    workers: int

    def switch(self, undo: Sequence[Saved], works: Sequence[HostWork], keep: Keep, done: list[Saved]) -> None:
        """See `deltapack.device.work.Engine.switch`."""
        before = by_region(undo)
        for work in works:
            earlier = before.pop(key(work.region), [])
            for saved in earlier:
                saved.put_back()
            # A tensor that is replaced as a whole changes nearly everywhere.
            copied = keep == "copy" or (keep == "auto" and work.job.base is None)
            if copied:
                done.append(SavedCopy.of(work.region, earlier))
            self._do(work, "nothing" if copied else keep, done)
        for rest in before.values():
            for saved in rest:
                saved.put_back()

    def _do(self, work: HostWork, keep: Keep, done: list[Saved]) -> None:
        changes = _SavedChanges(work)
        if keep != "nothing":
            done.append(changes)

        buffers = Buffers()

        def restore(chunk: int) -> None:
            # Whether inference mode is on is known to each thread by itself.
            with torch.inference_mode():
                old = read_chunk(work.region, work.job, chunk)
                new, _ = restore_chunk(cast(Checkpoint, _Held(old)), work.job, chunk, buffers)
                assert new is not None
                bits = f"<u{old.dtype.itemsize}"
                positions = np.flatnonzero(old.view(bits) != new.view(bits)).astype(np.uint32)
                if len(positions):
                    # First what undoes it, then the change.
                    changes.pieces.append((chunk, positions, old[positions]))
                    write_chunk(work.region, chunk, new)

        with closing(ordered_map(restore, work.region.chunks, self.workers)) as chunks:
            for _ in chunks:
                pass
