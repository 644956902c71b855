"""The engine under apply, merge and verify: base + terms, chunk by chunk, digests in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Protocol

import numpy as np

from deltapack import kernels
from deltapack.checkpoint import Checkpoint
from deltapack.composing.basecheck import wrong_base, wrong_result
from deltapack.composing.tensor_job import TensorJob
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.kernels import rounding
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.parallel import batches, ordered_map
from deltapack.reports import Progress

__all__ = ["Nowhere", "RestoredTensor", "Sink", "check_digests", "restore_chunk", "restore_tensors"]

_BATCH = 4 * CHUNK
"""Elements that one task restores, at least; no more are in memory at a time than those of one chunk."""


@dataclass(frozen=True)
class RestoredTensor:
    """A finished job and its digests."""

    job: TensorJob
    base_digests: tuple[bytes, ...]
    digests: tuple[bytes, ...]

    @property
    def base_root(self) -> str:
        """Root digest of the base tensor as it was read."""
        assert self.job.base is not None
        return root_digest(self.job.base.dtype.name, self.job.base.shape, self.base_digests)

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
        of_base, of_result = digests or (verify and bool(job.base_digest)), digests or (verify and bool(job.digest))
        if job.is_base and not of_base and not of_result and count and sink.copy(job, start, count):
            return done
        elements, base_digest = restore_chunk(base, job, chunk, buffers, base_digest=of_base or (of_result and job.is_base))
        if elements is None:
            return replace(done, base_digest=base_digest)
        digest = (base_digest if job.is_base else chunk_digest(elements)) if of_result else None
        if not (job.is_base and sink.copy(job, start, count)):
            sink.write(job, start, elements)
        return replace(done, base_digest=base_digest, digest=digest)

    def work(batch: list[tuple[int, int]]) -> list[_Done]:
        return list(map(restore, batch))

    tasks = ((number, chunk) for number, job in enumerate(jobs) for chunk in range(job.chunks))
    total, done = sum(job.numel * job.dtype.itemsize for job in jobs), 0
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


def restore_chunk(
    base: Checkpoint, job: TensorJob, chunk: int, buffers: Buffers, *, base_digest: bool = False
) -> tuple[Elements | None, bytes | None]:
    """Return the elements of a chunk of the result and, if wanted, the chunk digest of the base; each if there are any.

    The elements are valid until the thread restores its next chunk with the same `buffers`.
    """
    start, digest, parts = chunk * CHUNK, None, []
    if job.base is not None and start < job.base.numel:
        elements = buffers.take("base", job.base.dtype.storage, min(start + CHUNK, job.base.numel) - start)
        base.read_into(job.base.name, start, elements)
        # Now, as terms are added in place.
        digest = chunk_digest(elements) if base_digest else None
        common = elements[: max(0, job.common - start)]
        if len(common):
            parts.append(_combine(job, chunk, common, buffers))
    stop = min(start + CHUNK, job.numel)
    if job.rows is not None and stop > max(start, job.rows.start):
        stored = job.rows.read(max(start, job.rows.start), stop)
        parts.append(rounding.convert(stored, job.rows.dtype, job.dtype))
    if not parts:
        return None, digest
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts)), digest


def _combine(job: TensorJob, chunk: int, base: Elements, buffers: Buffers) -> Elements:
    """Return base plus terms; `base` is overwritten."""
    assert job.base is not None
    source, loops = job.base.dtype, kernels.active()
    if not job.terms:
        return rounding.convert(base, source, job.dtype)
    scratch = buffers.scratch(len(base))
    if len(job.terms) == 1 and source == job.dtype:
        job.terms[0].add_to(chunk, base, source, scratch)
        return base
    terms = [term.chunk(chunk, base, source, scratch) for term in job.terms]
    if source != job.dtype:
        return loops.add_sparse(base, source, job.dtype, *loops.sum_terms(len(base), terms))
    loops.add_in_place(base, source, terms)
    return base


def check_digests(base: Checkpoint, restored: RestoredTensor) -> None:
    """Compare the digests of a finished job with those that its pack promises.

    Raises:
        BaseMismatchError: The base tensor has another.
        ChecksumError: The result has another.
    """
    job = restored.job
    if job.base is not None and job.base_digest and restored.base_root != job.base_digest:
        raise wrong_base(base.path, job.base.name, job.base_digest, restored.base_root)
    if job.digest and restored.root != job.digest:
        raise wrong_result(job.pack, job.name, job.digest, restored.root)
