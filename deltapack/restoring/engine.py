"""The engine under apply, merge and verify: base + terms, chunk by chunk, digests in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.composing.basecheck import base_at_fault, wrong_base, wrong_result
from deltapack.composing.chunks import restore_chunk
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.engines import spread_map
from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.reports import Progress

__all__ = ["Nowhere", "RestoredTensor", "Sink", "check_digests", "overflow_warning", "restore_tensors", "told_of"]

_BATCH = 4 * CHUNK
"""Elements that one task restores, at least; no more are in memory at a time than those of one chunk."""


@dataclass(frozen=True)
class RestoredTensor:
    """A finished job and its digests; and how many elements became NaN or infinite though all that they are made of is finite."""

    job: TensorJob
    base_digests: tuple[bytes, ...]
    digests: tuple[bytes, ...]
    overflowed: int = 0

    def base_root(self, base: TensorInfo) -> str:
        """Return the root digest of the base tensor as it was read."""
        return root_digest(base.dtype.name, base.shape, self.base_digests)

    @property
    def root(self) -> str:
        """Root digest of the result."""
        return root_digest(self.job.dtype.name, self.job.shape, self.digests)


class Sink(Protocol):
    """Where restored elements go; called from any thread."""

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        """Take elements of a tensor from element `start`; they are valid during the call only."""

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        """Take elements of the base as they are, by whatever way is shorter than `write`; false if there is none."""


class Nowhere:
    """A sink for those who only want the digests."""

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        """Drop them."""

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        """Drop them."""
        return True


def restore_tensors(
    base: Checkpoint,
    jobs: Sequence[TensorJob],
    sink: Sink,
    *,
    verify: bool,
    workers: int,
    progress: Progress,
    digests: bool = False,
    record: Callable[[TensorJob, int], Any] | None = None,
    finished: Callable[[TensorJob, int, Any], None] | None = None,
) -> Generator[RestoredTensor, None, None]:
    """Restore tensors in order and yield each when its last chunk was written and its digests were checked.

    Close the generator before closing what `sink` writes to: threads may be at work until then.

    Args:
        base: The base.
        jobs: What to restore.
        sink: Where the elements go; where an engine restores them, a copy of it in another process.
        verify: Whether digests are compared with those that the jobs promise.
        workers: Threads.
        progress: Called with bytes of the result done so far and in all.
        digests: Whether the caller needs all digests, also those that nobody promised.
        record: Called with each chunk by whoever restored it.
        finished: Called with each chunk that is done, and what `record` gave, in order, by the thread that takes the tensors.

    Raises:
        BaseMismatchError: A base tensor has another digest than the pack says.
        ChecksumError: A result has another digest than the pack says.
        FormatError: A pack is damaged.
    """
    work = _Work(base, jobs, sink, verify, digests, record)
    tasks = ((number, chunk) for number, job in enumerate(jobs) for chunk in range(job.chunks))
    total, done = sum(job.nbytes for job in jobs), 0
    mapped = spread_map(work, tasks, workers, size=lambda task: min(CHUNK, jobs[task[0]].extent), least=_BATCH)
    with closing(mapped) as results:
        for number, group in groupby(results, key=lambda result: result[0][0]):
            rows = list[_Done]()
            for _, row in group:
                if finished is not None:
                    finished(jobs[number], len(rows), row.recorded)
                    row = replace(row, recorded=None)
                rows.append(row)
                done += row.nbytes
                progress(done, total)
            base_digests = tuple(row.base_digest for row in rows if row.base_digest is not None)
            digests_of_result = tuple(row.digest for row in rows if row.digest is not None)
            restored = RestoredTensor(jobs[number], base_digests, digests_of_result, sum(row.overflowed for row in rows))
            if verify:
                check_digests(base, restored)
            yield restored


@dataclass(frozen=True)
class _Done:
    """A finished chunk: bytes of the result, the digests that were wanted, what was recorded, elements that overflowed."""

    nbytes: int
    base_digest: bytes | None = None
    digest: bytes | None = None
    recorded: Any = None
    overflowed: int = 0


@dataclass(frozen=True)
class _Work:
    """Restores a chunk; the arguments of `restore_tensors`."""

    base: Checkpoint
    jobs: Sequence[TensorJob]
    sink: Sink
    verify: bool
    digests: bool
    record: Callable[[TensorJob, int], Any] | None
    buffers: Buffers = field(default_factory=Buffers)

    def __call__(self, task: tuple[int, int]) -> _Done:
        job, chunk = self.jobs[task[0]], task[1]
        done = self._restored(job, chunk)
        return done if self.record is None else replace(done, recorded=self.record(job, chunk))

    def _restored(self, job: TensorJob, chunk: int) -> _Done:
        base, sink = self.base, self.sink
        start, count = chunk * CHUNK, max(0, min(CHUNK, job.numel - chunk * CHUNK))
        done = _Done(count * job.dtype.itemsize)
        of_result = self.digests or (self.verify and bool(job.digest))
        of_base = self.digests or (self.verify and isinstance(job.source, FromBase) and bool(job.source.digest))
        if job.is_base and not of_base and not of_result and count and sink.copy(job, start, count):
            return done
        try:
            elements, base_digest, overflowed = restore_chunk(
                base, job, chunk, self.buffers, base_digest=of_base or (of_result and job.is_base)
            )
        except FormatError as error:
            if isinstance(job.source, FromBase) and job.source.exact is not None:
                raise base_at_fault(base, job.source.base, job.source.digest) or error from error
            raise
        if not len(elements):
            return replace(done, base_digest=base_digest)
        digest = (base_digest if job.is_base else chunk_digest(elements)) if of_result else None
        if not (job.is_base and sink.copy(job, start, count)):
            sink.write(job, start, elements)
        return replace(done, base_digest=base_digest, digest=digest, overflowed=overflowed)


def told_of(restored: Sequence[RestoredTensor]) -> list[str]:
    """Return what the user has to know of tensors with elements that became NaN or infinite."""
    warning = overflow_warning({tensor.job.name: tensor.overflowed for tensor in restored if tensor.overflowed})
    return [warning] if warning else []


def overflow_warning(lost: Mapping[str, int]) -> str:
    """Say which tensors have elements that became NaN or infinite, and how many; the empty string where there are none."""
    if not lost:
        return ""
    more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
    return (
        f"{sum(lost.values()):,} elements became NaN or infinite where base and differences are finite, in {min(lost)!r}{more}: "
        "a weight, lambda or rescale is too large, or the type too small; do not use the result"
    )


def check_digests(base: Checkpoint, restored: RestoredTensor) -> None:
    """Compare the digests of a finished job with those that its pack promises.

    Raises:
        BaseMismatchError: The base tensor has another.
        ChecksumError: The result has another.
    """
    job, source = restored.job, restored.job.source
    if isinstance(source, FromBase) and source.digest:
        found = restored.base_root(source.base)
        if found != source.digest:
            raise wrong_base(base.path, source.base.name, source.digest, found, pack=job.pack)
    if job.digest and restored.root != job.digest:
        raise wrong_result(job.pack, job.name, job.digest, restored.root)
