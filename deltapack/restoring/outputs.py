"""Sinks that write a checkpoint, in the process that opened it and in others."""

from __future__ import annotations

from dataclasses import dataclass

from deltapack.checkpoint import Checkpoint, FileWriter, FolderWriter
from deltapack.checkpoint.places import PlacedWriter
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.format.digest import CHUNK
from deltapack.kernels.layout import Elements

__all__ = ["Elsewhere", "Output"]


@dataclass(frozen=True)
class Elsewhere:
    """Restored elements go into a checkpoint; what the base has as it is goes from file to file."""

    base: Checkpoint
    writer: PlacedWriter

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        """Write elements."""
        self.writer.write(job.name, start, elements)

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        """Copy elements of the base."""
        found = self.base.file_range(job.source.base.name, start) if isinstance(job.source, FromBase) else None
        if found is None:
            return False
        self.writer.copy(job.name, start, count, *found)
        return True


@dataclass(frozen=True)
class Output(Elsewhere):
    """The same where the checkpoint was opened."""

    writer: FolderWriter | FileWriter

    def written(self, job: TensorJob, chunk: int, _: object) -> None:
        """Note a chunk that was written elsewhere."""
        self.writer.cover(job.name, min(chunk * CHUNK, job.numel), min((chunk + 1) * CHUNK, job.numel))
