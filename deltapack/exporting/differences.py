"""Differences between what a pack restores and its base: f32, a tensor at a time; and the use case that writes them all into a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.checking import as_pack, as_path
from deltapack.checkpoint import Checkpoint, open_writer, plan_shards
from deltapack.composing.tensor_job import TensorJob
from deltapack.dtypes import float_dtype
from deltapack.errors import RecipeError
from deltapack.exporting.opening import Opened, open_both
from deltapack.exporting.routing import origin_of
from deltapack.format.atomic import check_absent
from deltapack.format.digest import CHUNK
from deltapack.kernels import rounding
from deltapack.kernels.layout import Elements
from deltapack.packing.spectrum import Read
from deltapack.parallel import resolve_workers
from deltapack.reports import Progress
from deltapack.restoring.engine import Nowhere, Sink, restore_tensors
from deltapack.sources.inputs import guarded

__all__ = ["DifferenceReport", "check_job", "export_difference", "reader_of"]

_HELD = 1 << 28
"""Elements of a difference that is made once and kept while its tensor is worked on; a larger one is made anew by each pass."""


@dataclass(frozen=True)
class _Differences:
    """A sink that subtracts the base."""

    base: Checkpoint
    held: NDArray[np.float32]

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        """Take elements."""
        stop = start + len(elements)
        self.held[start:stop] = _subtracted(self.base, job, start, elements)

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        """Take nothing in another way."""
        return False


def _subtracted(base: Checkpoint, job: TensorJob, start: int, elements: Elements) -> NDArray[np.float32]:
    origin = origin_of(base, job)
    assert origin is not None, "a tensor that has a difference comes from one of the base"
    before = base.read(origin.name, start, start + len(elements))
    with np.errstate(over="ignore", invalid="ignore"):
        new: NDArray[np.float32] = rounding.to_f32(elements, job.dtype) - rounding.to_f32(before, origin.dtype)
    return new


def check_job(opened: Opened, job: TensorJob, workers: int, sink: Sink | None = None) -> None:
    """Restore a tensor, compare the digests of base and result with the pack's, and give its elements to a sink.

    Raises:
        BaseMismatchError: A base tensor is another one.
        FormatError: The pack is damaged.
    """
    restoring = restore_tensors(opened.seen, [job], sink or Nowhere(), verify=True, workers=workers, progress=lambda done, total: None)
    with closing(restoring) as tensors:
        for _ in tensors:
            pass


def reader_of(opened: Opened, job: TensorJob, workers: int) -> Read:
    """Return what reads the difference of a tensor, `[stop - start] f32`: that of both values as f32; raises as `check_job`."""
    if job.numel > _HELD:
        check_job(opened, job, workers)
        return lambda start, stop: _subtracted(opened.seen, job, start, opened.restored.read(job.name, start, stop))
    held = np.empty(job.numel, np.float32)
    check_job(opened, job, workers, _Differences(opened.seen, held))
    return lambda start, stop: held[start:stop]


@dataclass(frozen=True)
class DifferenceReport:
    """What `export_difference` did. Sizes in bytes.

    Attributes:
        out: The file.
        bytes: Size of its tensors.
        differences: How many tensors of it are differences.
        whole: Tensors that are whole, as the base has none to subtract, or one of another shape or no floats.
        notes: What was noticed.
    """

    out: Path
    bytes: int
    differences: int
    whole: Sequence[str] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; paths become strings."""
        return asdict(self) | {"out": str(self.out)}


@guarded
def export_difference(
    pack: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DifferenceReport:
    """Write what a pack adds to its base as a plain file of safetensors: a task vector, as tools of task arithmetic take it.

    Each tensor that the pack changes is `restored - base`, in f32 and rounded once; those that it leaves alone are not there. Tensors that
    no difference is taken of are whole, and `whole` in the file's metadata, a JSON list, names them.

    Args:
        pack: The pack.
        base: Its base: a folder or file, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.
        out: The file to write, which ends in `.safetensors`; it appears only when complete.
        dtype: Type of the differences; that of the fine-tune's tensors unless given. Only `"f32"` loses nothing.
        workers: Threads; every core unless given.
        progress: Called with bytes done so far and in all.

    Raises:
        BackendError: The base is on the Hub, and huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is damaged.
        FormatError: The pack is damaged.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
    """
    pack, out, count = as_pack("pack", pack), as_path("out", out), resolve_workers(workers)
    wanted = None if dtype is None else float_dtype(dtype)
    if out.suffix != ".safetensors":
        raise RecipeError(
            "differences are one file", path=out, expected="a name that ends in .safetensors", found=out.suffix or "no ending"
        )
    check_absent(out)
    with ExitStack() as stack:
        opened = open_both(stack, pack, base)
        files, restored = opened.base, opened.restored
        jobs = [job for job in opened.jobs if not job.is_base]
        whole = [job.name for job in jobs if not _has_difference(opened, job)]
        tensors = []
        for job in jobs:
            tensors.append((job.name, job.dtype if wanted is None or job.name in whole else wanted, job.shape))
        told = {"format": "pt", "difference": "restored - base", "whole": json.dumps(whole)}
        total, done = sum(kind.count(shape) * kind.itemsize for _, kind, shape in tensors), 0
        with open_writer(out, plan_shards(tensors), protect=[files.path, pack], metadata={"": told}) as writer:
            for job, (name, kind, _) in zip(jobs, tensors, strict=True):
                if name in whole:
                    check_job(opened, job, count)
                read = None if name in whole else reader_of(opened, job, count)
                for start in range(0, job.numel, CHUNK):
                    stop = min(start + CHUNK, job.numel)
                    part = restored.read(name, start, stop) if read is None else rounding.from_f32(read(start, stop), kind)
                    writer.write(name, start, part)
                    done += part.nbytes
                    if progress is not None:
                        progress(done, total)
        return DifferenceReport(out, total, len(jobs) - len(whole), whole, opened.notes)


def _has_difference(opened: Opened, job: TensorJob) -> bool:
    before = origin_of(opened.seen, job)
    return before is not None and before.shape == job.shape and before.dtype.is_delta and job.dtype.is_delta
