"""The engine under apply, merge and verify: base + terms, chunk by chunk, digests in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Protocol

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.composing.basecheck import base_at_fault, wrong_base, wrong_result
from deltapack.composing.chunks import restore_chunk
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.parallel import batches, ordered_map
from deltapack.reports import Progress

__all__ = ["Nowhere", "RestoredTensor", "Sink", "check_digests", "restore_tensors"]

_BATCH = 4 * CHUNK
"""Elements that one task restores, at least; no more are in memory at a time than those of one chunk."""


@dataclass(frozen=True)
class RestoredTensor:
    """A finished job and its digests."""

    job: TensorJob
    base_digests: tuple[bytes, ...]
    digests: tuple[bytes, ...]

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
    finished: Callable[[TensorJob, int], None] | None = None,
) -> Generator[RestoredTensor, None, None]:
    """Restore tensors in order and yield each when its last chunk was written and its digests were checked.

    Close the generator before closing what `sink` writes to: threads may be at work until then.

    Args:
        base: The base.
        jobs: What to restore.
        sink: Where the elements go.
        verify: Whether digests are compared with those that the jobs promise.
        workers: Threads.
        progress: Called with bytes of the result done so far and in all.
        digests: Whether the caller needs all digests, also those that nobody promised.
        finished: Called with each chunk that is done, in order, by the thread that takes the tensors.

    Raises:
        BaseMismatchError: A base tensor has another digest than the pack says.
        ChecksumError: A result has another digest than the pack says.
        FormatError: A pack is damaged.
    """
    buffers = Buffers()

    def restore(task: tuple[int, int]) -> _Done:
        job, chunk = jobs[task[0]], task[1]
        start, count = chunk * CHUNK, max(0, min(CHUNK, job.numel - chunk * CHUNK))
        done = _Done(task[0], count * job.dtype.itemsize)
        of_result = digests or (verify and bool(job.digest))
        of_base = digests or (verify and isinstance(job.source, FromBase) and bool(job.source.digest))
        if job.is_base and not of_base and not of_result and count and sink.copy(job, start, count):
            return done
        try:
            elements, base_digest = restore_chunk(base, job, chunk, buffers, base_digest=of_base or (of_result and job.is_base))
        except FormatError as error:
            if isinstance(job.source, FromBase) and job.source.exact is not None:
                raise base_at_fault(base, job.source.base, job.source.digest) or error from error
            raise
        if not len(elements):
            return replace(done, base_digest=base_digest)
        digest = (base_digest if job.is_base else chunk_digest(elements)) if of_result else None
        if not (job.is_base and sink.copy(job, start, count)):
            sink.write(job, start, elements)
        return replace(done, base_digest=base_digest, digest=digest)

    def work(batch: list[tuple[int, int]]) -> list[_Done]:
        return list(map(restore, batch))

    tasks = ((number, chunk) for number, job in enumerate(jobs) for chunk in range(job.chunks))
    total, done = sum(job.nbytes for job in jobs), 0
    joined = batches(tasks, lambda task: min(CHUNK, jobs[task[0]].extent), _BATCH)
    with closing(ordered_map(work, joined, workers)) as results:
        for number, group in groupby(chain.from_iterable(results), key=lambda result: result.number):
            rows = list[_Done]()
            for row in group:
                if finished is not None:
                    finished(jobs[number], len(rows))
                rows.append(row)
                done += row.nbytes
                progress(done, total)
            base_digests = tuple(row.base_digest for row in rows if row.base_digest is not None)
            restored = RestoredTensor(jobs[number], base_digests, tuple(row.digest for row in rows if row.digest is not None))
            if verify:
                check_digests(base, restored)
            yield restored


@dataclass(frozen=True)
class _Done:
    """A finished chunk: number of its job, bytes of the result, the digests that were wanted."""

    number: int
    nbytes: int
    base_digest: bytes | None = None
    digest: bytes | None = None


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
