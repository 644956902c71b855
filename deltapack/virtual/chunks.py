"""Chunks of restored tensors, made when they are asked for, and checked before anyone sees them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from deltapack.composing.basecheck import base_at_fault, wrong_base, wrong_result
from deltapack.composing.chunks import make_chunk
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.errors import BaseMismatchError, DeltapackError, FormatError
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.format.index import Entry
from deltapack.format.reader import PackReader
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.restoring.engine import Nowhere, Sink, restore_tensors
from deltapack.virtual.cache import ChunkCache
from deltapack.virtual.planning import FolderPlan

__all__ = ["RestoredChunks"]

_whole = [threading.Lock()]
"""Whole tensors are read by several threads each: one at a time, lest threads multiply. A forked process begins with a lock of its own."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _whole.__setitem__(0, threading.Lock()))
_LASTING = (BaseMismatchError, FormatError)
"""Errors that come again; a disk or a network may do better the next time."""
_Stated = tuple[PackReader, Entry]


@dataclass
class _Tensor:
    """A tensor and what is known of it.

    Attributes:
        job: What it is made of, once `ready` in its final form.
        of_base: Chunk digests of its base tensor, where a pack has them.
        of_result: Those of the result.
        ready: Whether it can be read chunk by chunk.
        error: Why it cannot be read at all.
        lock: Whoever makes it ready holds it.
    """

    job: TensorJob
    of_base: Sequence[bytes] = ()
    of_result: Sequence[bytes] = ()
    ready: bool = False
    error: DeltapackError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class RestoredChunks:
    """The tensors of a result, chunk by chunk, from any number of threads.

    A chunk whose digests a pack holds is checked alone. Of a tensor of which packs know the root digest only (one that is coded exactly,
    or that stays as it is, of several chunks) all chunks are made and compared before the first one is given out.
    """

    def __init__(self, plan: FolderPlan, cache: ChunkCache, owner: int, *, verify: bool, workers: int) -> None:
        """Make nothing yet.

        Args:
            plan: What the tensors are made of.
            cache: Where chunks are kept.
            owner: As whose.
            verify: Whether digests are compared.
            workers: Threads that make a whole tensor.
        """
        self._base, self._packs, self._finish = plan.base, plan.packs, plan.finish
        self._cache, self._owner = cache, owner
        self._verify, self._workers = verify, workers
        self._tensors = {job.name: _Tensor(job) for job in plan.jobs}
        self._buffers = Buffers()

    def chunk(self, name: str, number: int) -> Elements:
        """Return the elements of a chunk; nobody may change them.

        Raises:
            BaseMismatchError: The base is another one.
            ChecksumError: The result is not what the pack promises.
            CheckpointError: The base cannot be read.
            FormatError: A pack is damaged.
        """
        tensor = self._ready(name)
        return self._cache.get((self._owner, name, number), lambda: self._make(tensor, number))

    def knows(self, name: str, number: int) -> bool:
        """Whether a chunk is at hand or in the making."""
        return self._cache.knows((self._owner, name, number))

    def _ready(self, name: str) -> _Tensor:
        tensor = self._tensors[name]
        if not tensor.ready:
            with tensor.lock:
                if tensor.error is not None:
                    raise tensor.error.with_traceback(None)  # or it would grow with each who asks
                if not tensor.ready:
                    try:
                        self._make_ready(tensor)
                    except _LASTING as error:  # the next one who asks need not read it all again
                        tensor.error = error
                        raise
        return tensor

    def _make_ready(self, tensor: _Tensor) -> None:
        """Look at all of a tensor where that has to be, for a threshold or a digest."""
        tensor.job = job = self._finish(tensor.job)
        if self._verify:
            tensor.of_base, tensor.of_result = self._stated(job)
            base_root = isinstance(job.source, FromBase) and bool(job.source.digest) and not tensor.of_base
            if job.chunks > 1 and (base_root or (job.digest and not tensor.of_result)):
                self._make_whole(job, Nowhere() if job.is_base else _IntoCache(self._cache, self._owner))
        tensor.ready = True

    def _make_whole(self, job: TensorJob, sink: Sink) -> None:
        """Restore all chunks and compare the root digests."""
        whole = restore_tensors(self._base, [job], sink, verify=True, workers=self._workers, progress=lambda done, total: None)
        with _whole[0], closing(whole) as tensors:
            for _ in tensors:
                pass

    def _stated(self, job: TensorJob) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """Return the chunk digests that packs hold of a tensor, of its base tensor and of the result."""
        by_base, by_name = self._digested
        source = job.source
        held = by_base.get(source.base.name) if isinstance(source, FromBase) and source.digest else None
        own = by_name.get((job.name, job.digest)) if job.digest else None
        return [] if held is None else held[0].chunk_digests(held[1])[0], [] if own is None else own[0].chunk_digests(own[1])[1]

    @cached_property
    def _digested(self) -> tuple[dict[str, _Stated], dict[tuple[str, str], _Stated]]:
        """The entries that have chunk digests, by the base tensor, and by name and digest of the result."""
        stated = [(pack, entry) for pack in self._packs for entry in pack.index.entries if entry.digests is not None]
        aliases = self._base.aliases
        by_base = {aliases.get(entry.base.name, entry.base.name): (pack, entry) for pack, entry in stated if entry.base is not None}
        return by_base, {(entry.name, entry.digest): (pack, entry) for pack, entry in stated}

    def _make(self, tensor: _Tensor, number: int) -> Elements:
        """Restore a chunk and compare its digests."""
        job, start = tensor.job, number * CHUNK
        held = np.zeros(0, job.dtype.storage)
        if isinstance(job.source, FromBase) and start < job.source.base.numel:
            base = job.source.base
            held = np.empty(min(CHUNK, base.numel - start), base.dtype.storage)
            self._base.read_into(base.name, start, held)
            self._check_base(tensor, job.source, number, held)
        try:
            made = make_chunk(job, number, held, self._buffers)
        except FormatError as error:
            fault = base_at_fault(self._base, job.source.base, job.source.digest) if isinstance(job.source, FromBase) else None
            raise fault or error from error
        if not np.may_share_memory(made, held):
            made = made.copy()  # what is not there is in buffers, or another chunk's
        self._check_result(tensor, number, made)
        made.flags.writeable = False
        return made

    def _check_base(self, tensor: _Tensor, source: FromBase, number: int, held: Elements) -> None:
        """Compare a chunk of the base.

        Raises:
            BaseMismatchError: It is another one.
        """
        base = source.base
        if not self._verify or not source.digest or (tensor.job.chunks > 1 and not tensor.of_base):
            return
        digest = chunk_digest(held)
        same = tensor.of_base[number] == digest if tensor.of_base else root_digest(base.dtype.name, base.shape, [digest]) == source.digest
        if not same:
            raise wrong_base(self._base.path, base.name, source.digest, f"digest {digest.hex()}, chunk {number}", pack=tensor.job.pack)

    def _check_result(self, tensor: _Tensor, number: int, made: Elements) -> None:
        """Compare a chunk of the result.

        Raises:
            ChecksumError: It is not what the pack promises.
        """
        job = tensor.job
        if not self._verify or not job.digest or (job.chunks > 1 and not tensor.of_result):
            return
        digest = chunk_digest(made)
        same = tensor.of_result[number] == digest if tensor.of_result else root_digest(job.dtype.name, job.shape, [digest]) == job.digest
        if not same:
            raise wrong_result(job.pack, job.name, job.digest, f"{digest.hex()}, chunk {number}")


@dataclass(frozen=True)
class _IntoCache:
    """Chunks of a whole tensor go to those that are kept, as far as there is room."""

    cache: ChunkCache
    owner: int

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        """Keep a chunk."""
        kept = elements.copy()
        kept.flags.writeable = False
        self.cache.put((self.owner, job.name, start // CHUNK), kept)

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        """Nothing is copied."""
        return False
