"""Jobs restored on a device: base tensors are sent there, terms are added there, results stay or come back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.composing.chunks import count_overflowed
from deltapack.composing.tensor_job import FromBase, PackTerm, TensorJob
from deltapack.device import torch_kernels
from deltapack.device.backends import choose, resolve_device
from deltapack.device.engine import Engine
from deltapack.device.exact_ready import is_decoded
from deltapack.device.exact_work import ExactWork
from deltapack.device.regions import Region, not_finite, read_chunk, region_of, write_chunk
from deltapack.device.resident import ResidentPack, send
from deltapack.device.work import Work
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest
from deltapack.format.reader import PackReader
from deltapack.parallel import ordered_map
from deltapack.reports import Progress
from deltapack.restoring.engine import RestoredTensor, Sink, check_digests, restore_tensors

__all__ = ["DevicePlace", "place_of", "restore_on_device"]

_BATCH_BYTES = 1 << 28
"""Tensors are sent and decoded in batches of so many bytes, one launch each."""


@dataclass(frozen=True)
class DevicePlace:
    """A device, and what adds terms there."""

    device: torch.device
    engine: Engine


@runtime_checkable
class _Holds(Protocol):
    """A sink that is memory of the device itself."""

    def region(self, job: TensorJob) -> Region:
        """Return where a tensor of the result is to be made."""


@dataclass(frozen=True)
class _Sum:
    """A job that is its base plus terms of packs, element by element; or what one pack makes of the base, bit for bit."""

    job: TensorJob
    base: TensorInfo
    terms: tuple[PackTerm, ...]
    exact: ExactTensor | None

    @property
    def readers(self) -> list[PackReader]:
        """The packs that are needed."""
        exact = [] if self.exact is None else [self.exact.reader]
        return list(dict.fromkeys([*exact, *(term.reader for term in self.terms)]))


@dataclass(frozen=True)
class _Sent:
    """A base tensor on the device, what is to be done there, and the chunk digests of what was sent."""

    job: TensorJob
    work: Work | ExactWork
    base_digests: tuple[bytes, ...]


def place_of(device: str | None, backend: str) -> tuple[DevicePlace | None, str]:
    """Return where jobs are restored (`None`: on the host, by numba or numpy), and a sentence that says so.

    Raises:
        BackendError: The device or backend cannot be used here.
    """
    found = resolve_device(device)
    choice = choose(backend, found)
    place = DevicePlace(found, choice.engine) if choice.engine is not None else None
    return place, f"decoded on device {found} by backend {choice}"


def restore_on_device(
    base: Checkpoint,
    jobs: Sequence[TensorJob],
    sink: Sink,
    place: DevicePlace,
    *,
    verify: bool,
    workers: int,
    progress: Progress,
) -> Generator[RestoredTensor, None, None]:
    """Restore tensors; those that are base plus terms of packs on the device, the others before on the host.

    Yields:
        Each tensor when it was given to the sink and its digests were checked.

    Raises:
        BaseMismatchError: A base tensor has another digest than the pack says.
        ChecksumError: A result has another digest than the pack says.
        FormatError: A pack is damaged.
    """
    total, done = sum(job.nbytes for job in jobs), 0
    found = [_sum_of(job) for job in jobs]
    sums, others = [one for one in found if one is not None], [job for job, one in zip(jobs, found, strict=True) if one is None]
    restoring = restore_tensors(base, others, sink, verify=verify, workers=workers, progress=lambda part, _: progress(part, total))
    with closing(restoring) as restored:
        for tensor in restored:
            done += tensor.job.nbytes
            yield tensor
    run = _Run(base, place, sink, verify, workers, {})
    batch, nbytes = list[_Sent](), 0
    for number, one in enumerate(sums, 1):
        batch.append(run.send(one))
        nbytes += one.job.nbytes
        if nbytes >= _BATCH_BYTES or number == len(sums):
            for tensor in run.decode(batch):
                done += tensor.job.nbytes
                progress(done, total)
                yield tensor
            batch, nbytes = [], 0


@dataclass(frozen=True)
class _Run:
    """What the jobs of one call share; packs are sent when a job first needs them."""

    base: Checkpoint
    place: DevicePlace
    sink: Sink
    verify: bool
    workers: int
    packs: dict[PackReader, ResidentPack]

    def send(self, wanted: _Sum) -> _Sent:
        """Send a base tensor, converted where the result has another type."""
        job, held, device = wanted.job, wanted.base, self.place.device
        if isinstance(self.sink, _Holds):
            target = self.sink.region(job)
        else:
            target = region_of(torch.empty(job.shape, dtype=getattr(torch, job.dtype.torch), device=device), job.shape)
        source = target
        if held.dtype != job.dtype:
            source = region_of(torch.empty(held.shape, dtype=getattr(torch, held.dtype.torch), device=device), held.shape)

        def copy(chunk: int) -> bytes:
            elements = self.base.read(held.name, chunk * CHUNK, min((chunk + 1) * CHUNK, held.numel))
            write_chunk(source, chunk, elements)
            return chunk_digest(elements) if self.verify else b""

        digests = self._each(copy, chunk_count(held.numel))
        if source is not target:
            target.memory.copy_(torch_kernels.convert(source.memory, held.dtype, job.dtype))
        for reader in wanted.readers:
            if reader not in self.packs:
                self.packs[reader] = send(reader, device, self.workers)
        if wanted.exact is not None:
            return _Sent(job, ExactWork(target, job.dtype, self.packs[wanted.exact.reader].exact[job.name]), digests)
        added = tuple((self.packs[term.reader].terms[term.term], float(term.factor)) for term in wanted.terms)
        return _Sent(job, Work(target, job.dtype, added, None if source is target else (source, held.dtype)), digests)

    def decode(self, batch: Sequence[_Sent]) -> Generator[RestoredTensor, None, None]:
        """Add all terms in one go, check the results, and give them to the sink."""
        self.place.engine.switch([], [sent.work for sent in batch], "nothing", [])
        for sent in batch:
            job, stays = sent.job, isinstance(self.sink, _Holds)

            lost = list[int]()

            def take(chunk: int, sent: _Sent = sent, stays: bool = stays, lost: list[int] = lost) -> bytes:
                elements = read_chunk(sent.work.region, sent.job, chunk)
                if not stays:
                    self.sink.write(sent.job, chunk * CHUNK, elements)
                lost.append(count_overflowed(self.base, sent.job, chunk, elements))
                return chunk_digest(elements) if self.verify else b""

            needed = not stays or (self.verify and bool(job.digest)) or (job.digest == "" and not_finite(sent.work.region, job.dtype) > 0)
            digests = self._each(take, chunk_count(job.numel) if needed else 0)
            restored = RestoredTensor(job, sent.base_digests, digests, sum(lost))
            if self.verify:
                check_digests(self.base, restored)
            yield restored

    def _each(self, function: Callable[[int], bytes], chunks: int) -> tuple[bytes, ...]:
        """Return what a function gives for each chunk; most tensors have one, for which no thread is started."""
        return tuple(ordered_map(function, range(chunks), max(1, min(self.workers, chunks))))


def _sum_of(job: TensorJob) -> _Sum | None:
    """Return a job as a sum of its base and terms of packs, or as what one makes of the base, if it is one."""
    source, terms = job.source, tuple(term for term in job.terms if isinstance(term, PackTerm))
    if not isinstance(source, FromBase) or source.base.shape != job.shape or source.rows is not None:
        return None
    if source.exact is not None:
        can_decode = is_decoded(source.exact.entry) and job.dtype == source.exact.dtype and not job.terms
        return _Sum(job, source.base, (), source.exact) if can_decode else None
    return _Sum(job, source.base, terms, None) if terms and len(terms) == len(job.terms) else None
