"""The engine under apply, merge and verify: base + terms, chunk by chunk, digests in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.buffers import Buffers
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.chunk import decode_stored_chunk, decode_term_chunk
from deltapack.dtypes import DType
from deltapack.errors import BaseMismatchError, ChecksumError
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest
from deltapack.format.index import BlobRef, Entry, Term
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.kernels import rounding
from deltapack.merge_methods import Method, Sparse
from deltapack.merge_methods.linear import linear
from deltapack.parallel import ordered_map
from deltapack.reports import Progress

__all__ = ["PackTerm", "RestoredTensor", "StoredRows", "StoredTerm", "TensorJob", "restore_chunk", "restore_tensors"]

Elements = NDArray[np.generic]


Room = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""Arrays for the positions and values of a chunk, of its length and 256 elements more."""
_SPARE = 256


class TermSource(Protocol):
    """Where the weighted values of one term come from."""

    def chunk(self, number: int, base: Elements, source: DType, room: Room | None = None) -> Sparse:
        """Return positions and values of a chunk whose base elements are `base`; views of `room` where it is given."""


@dataclass(frozen=True)
class PackTerm:
    """A term of a pack; `factor` is the term's factor times the weight."""

    reader: PackReader
    term: Term
    blob: ChunkedBlob
    factor: np.float32

    def chunk(self, number: int, base: Elements, source: DType, room: Room | None = None) -> Sparse:
        """Decode a chunk."""
        return decode_term_chunk(self.blob, self.term, number, self.factor, room)


@dataclass(frozen=True)
class StoredRows:
    """Elements that a pack stores whole; `start` is the first one's place in the result."""

    reader: PackReader
    ref: BlobRef
    blob: ChunkedBlob
    dtype: DType
    start: int = 0

    def read(self, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of the result."""
        first, last = (start - self.start) // CHUNK, (stop - 1 - self.start) // CHUNK
        parts = [decode_stored_chunk(self.blob, self.dtype, chunk) for chunk in range(first, last + 1)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        offset = self.start + first * CHUNK
        return joined[start - offset : stop - offset]


@dataclass(frozen=True)
class StoredTerm:
    """A tensor stored whole, seen as a dense difference: `weight * (f32(stored) - f32(base))`."""

    rows: StoredRows
    weight: np.float32

    def chunk(self, number: int, base: Elements, source: DType, room: Room | None = None) -> Sparse:
        """Compute a chunk."""
        stored = self.rows.read(number * CHUNK, number * CHUNK + len(base))
        with np.errstate(over="ignore", invalid="ignore"):
            delta = rounding.to_f32(stored, self.rows.dtype) - rounding.to_f32(base, source)
            return np.arange(len(base), dtype=np.uint32), delta * self.weight


@dataclass(frozen=True)
class TensorJob:
    """One tensor to restore.

    Attributes:
        name: Its name in the result; for a tensor that only the base has, its name there.
        dtype: Its type.
        shape: Its shape.
        numel: Its number of elements; 0 where only the base is to be checked.
        base: The tensor that it starts from.
        base_digest: What the base tensor's root digest must be; empty where nobody says.
        terms: What is added to the common elements.
        rows: Elements stored whole: all, or those after the common ones.
        digest: What the root digest must be; empty where nobody says.
        pack: The pack that says so.
        whole: The entry that the tensor is taken from as it is, if it is.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    numel: int
    base: TensorInfo | None = None
    base_digest: str = ""
    terms: tuple[TermSource, ...] = ()
    rows: StoredRows | None = None
    digest: str = ""
    pack: Path | None = None
    whole: Entry | None = None

    @property
    def common(self) -> int:
        """Number of leading elements that are base plus terms."""
        return 0 if self.base is None else min(self.numel, self.base.numel)

    @property
    def chunks(self) -> int:
        """Chunks of work; a tensor without elements is one empty chunk."""
        return max(1, chunk_count(max(self.numel, self.base.numel if self.base is not None else 0)))


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


Write = Callable[[TensorJob, int, Elements], None]
"""Called from any thread with a job, the first element's place, and elements of the result."""


def restore_tensors(
    base: Checkpoint,
    jobs: Sequence[TensorJob],
    method: Method,
    write: Write,
    *,
    verify: bool,
    workers: int,
    progress: Progress,
) -> Generator[RestoredTensor, None, None]:
    """Restore tensors in order and yield each when its last chunk was written and its digests were checked.

    Close the generator before closing what `write` writes to: threads may be at work until then.

    Raises:
        BaseMismatchError: A base tensor has another digest than the pack says.
        ChecksumError: A result has another digest than the pack says.
        FormatError: A pack is damaged.
    """
    buffers = Buffers()

    def work(task: tuple[int, int]) -> tuple[int, bytes | None, bytes | None, int]:
        job = jobs[task[0]]
        elements, base_digest, digest = restore_chunk(base, job, task[1], method, buffers)
        if elements is not None:
            write(job, task[1] * CHUNK, elements)
        return task[0], base_digest, digest, 0 if elements is None else elements.nbytes

    tasks = ((number, chunk) for number, job in enumerate(jobs) for chunk in range(job.chunks))
    total, done = sum(job.numel * job.dtype.itemsize for job in jobs), 0
    with closing(ordered_map(work, tasks, workers)) as results:
        for number, group in groupby(results, key=lambda result: result[0]):
            rows = []
            for row in group:
                rows.append(row)
                done += row[3]
                progress(done, total)
            base_digests = tuple(row[1] for row in rows if row[1] is not None)
            restored = RestoredTensor(jobs[number], base_digests, tuple(row[2] for row in rows if row[2] is not None))
            if verify:
                _check(base, restored)
            yield restored


def restore_chunk(
    base: Checkpoint, job: TensorJob, chunk: int, method: Method, buffers: Buffers
) -> tuple[Elements | None, bytes | None, bytes | None]:
    """Return the elements of a chunk of the result, and the chunk digests of base and result; each if there are any.

    The elements are valid until the thread restores its next chunk with the same `buffers`.
    """
    start, base_digest, elements, parts = chunk * CHUNK, None, None, []
    if job.base is not None and start < job.base.numel:
        elements = buffers.take("base", job.base.dtype.storage, min(start + CHUNK, job.base.numel) - start)
        base.read_into(job.base.name, start, elements)
        base_digest = chunk_digest(elements)
        common = min(len(elements), job.common - start)
        if common > 0:
            parts.append(_combine(job, chunk, elements if common == len(elements) else elements[:common], method, buffers))
    stop = min(start + CHUNK, job.numel)
    if job.rows is not None and stop > max(start, job.rows.start):
        stored = job.rows.read(max(start, job.rows.start), stop)
        parts.append(rounding.convert(stored, job.rows.dtype, job.dtype))
    if not parts:
        return None, base_digest, None
    result = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
    is_base = result is elements and not job.terms
    return result, base_digest, base_digest if is_base else chunk_digest(result)


def _combine(job: TensorJob, chunk: int, base: Elements, method: Method, buffers: Buffers) -> Elements:
    """Return base plus terms; `base` is overwritten."""
    assert job.base is not None
    source, loops = job.base.dtype, kernels.active()
    if not job.terms:
        return rounding.convert(base, source, job.dtype)
    rooms = [_room(buffers, number, len(base)) for number in range(len(job.terms))]
    terms = [term.chunk(chunk, base, source, room) for term, room in zip(job.terms, rooms, strict=True)]
    if source != job.dtype:
        return loops.add_sparse(base, source, job.dtype, *method(len(base), terms))
    loops.add_in_place(base, source, terms if method is linear else [method(len(base), terms)])
    return base


def _room(buffers: Buffers, number: int, length: int) -> Room:
    positions = buffers.take(f"positions {number}", "<u4", length + _SPARE).view(np.uint32)
    return positions, buffers.take(f"values {number}", "<f4", length + _SPARE).view(np.float32)


def _check(base: Checkpoint, restored: RestoredTensor) -> None:
    job = restored.job
    if job.base is not None and job.base_digest and restored.base_root != job.base_digest:
        raise BaseMismatchError(
            "the base tensor has other content than the one the pack was made from",
            path=base.path,
            tensor=job.base.name,
            expected=f"digest {job.base_digest}",
            found=restored.base_root,
            rule="R12",
            hint="Use the very base checkpoint (same revision, same dtype) that the fine-tune was compressed against.",
        )
    if job.digest and restored.root != job.digest:
        raise ChecksumError(
            "the restored tensor is not what the pack promises",
            path=job.pack,
            tensor=job.name,
            expected=f"digest {job.digest}",
            found=restored.root,
            rule="R12",
            hint="The pack was made by a faulty writer or altered; do not use it.",
        )
