"""One compression as a stream of chunk tasks, whose outcomes become entries in the order of a pack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

from deltapack.checkpoint import Checkpoint
from deltapack.engines import spread_map
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest
from deltapack.format.index import BaseRef, Entry
from deltapack.kernels.buffers import Buffers
from deltapack.packing.encoding import ChunkOutcome, encode_chunk
from deltapack.packing.entries import Digests, EntryWriter, unchanged
from deltapack.packing.inputs import Inputs
from deltapack.packing.planning import PackPlan
from deltapack.reports import Progress

__all__ = ["BaseRow", "Run"]

BaseRow = tuple[str, str, tuple[int, ...], str]


@dataclass(frozen=True)
class Job:
    """One tensor: of the fine-tune (with a plan), or one that only the base has."""

    name: str
    plan: PackPlan | None


_Task = tuple[Job, int]
_Result = tuple[_Task, ChunkOutcome]


def _size(task: _Task) -> int:
    """Return about how many elements a task reads."""
    job, _ = task
    return CHUNK if job.plan is None else min(CHUNK, job.plan.tensor.numel)


@dataclass(frozen=True)
class Run:
    """One compression: a stream of chunk tasks whose outcomes come back in order."""

    inputs: Inputs
    plans: Iterable[PackPlan]
    workers: int
    progress: Progress

    def write(self, entry_writer: EntryWriter) -> tuple[list[Entry], list[BaseRow]]:
        """Write the blobs of every tensor; return the entries by name and the base's digests.

        Raises:
            BaseMismatchError: A tensor of a chain's result is not what its last pack promises.
        """
        entries, base_rows = [], []
        encode = _Encode(self.inputs.base, self.inputs.finetuned)
        with closing(spread_map(encode, self._tasks(), self.workers, size=_size, least=CHUNK)) as results:
            for job, group in groupby(self._counted(results), key=lambda result: result[0][0]):
                outcomes = (outcome for _, outcome in group)
                if job.plan is None:
                    digests = Digests()
                    for outcome in outcomes:
                        digests.add(outcome)
                else:
                    entry, digests = entry_writer.write(job.plan, outcomes)
                    entries.append(entry)
                    self.inputs.check_finetuned(entry.name, entry.digest)
                base = self.inputs.base.files.tensors[job.name] if job.plan is None else job.plan.base
                if base is not None and base.arranged is None:
                    base_rows.append((base.name, base.dtype.name, base.shape, digests.base_root(base)))
                    self.inputs.check_base(base.name, base_rows[-1][-1])
                if job.plan is None and job.name in self.inputs.survey.kept:
                    kept = self.inputs.base.files.tensors[job.name]
                    entries.append(unchanged(kept, kept, digests))
        entries += [Entry(name, "alias", of=of) for name, of in self.inputs.finetuned.aliases.items()]
        entries += _removed(self.inputs.base, base_rows, entries)
        return sorted(entries, key=lambda entry: entry.name.encode()), base_rows

    def _counted(self, results: Iterable[_Result]) -> Iterator[_Result]:
        """Pass results on and report progress."""
        done, total = 0, sum(tensor.nbytes for tensor in self.inputs.finetuned.tensors.values())
        for task, outcome in results:
            plan = task[0].plan
            if plan is not None:
                done += outcome.elements * plan.tensor.dtype.itemsize
                self.progress(done, total)
            yield task, outcome

    def _tasks(self) -> Iterator[_Task]:
        for plan in self.plans:
            numel = max(plan.tensor.numel, plan.base.numel if plan.base is not None else 0)
            # A tensor without elements still is one task, so that it gets its entry.
            for chunk in range(max(1, chunk_count(numel))):
                yield Job(plan.tensor.name, plan), chunk
        for name in self.inputs.only_base():
            for chunk in range(max(1, chunk_count(self.inputs.base.files.tensors[name].numel))):
                yield Job(name, None), chunk


@dataclass(frozen=True)
class _Encode:
    """Encodes a chunk of a tensor."""

    base: Checkpoint
    finetuned: Checkpoint
    buffers: Buffers = field(default_factory=Buffers)

    def __call__(self, task: _Task) -> ChunkOutcome:
        job, chunk = task
        if job.plan is not None:
            return encode_chunk(self.base, self.finetuned, job.plan, chunk, self.buffers)
        numel = self.base.files.tensors[job.name].numel
        elements = self.base.files.read(job.name, min(chunk * CHUNK, numel), min((chunk + 1) * CHUNK, numel))
        return ChunkOutcome(chunk_digest(elements) if len(elements) else None)


def _removed(base: Checkpoint, base_rows: Sequence[BaseRow], entries: Sequence[Entry]) -> list[Entry]:
    """Return an entry for each base tensor that no entry uses or, under its name, replaces."""
    known = {entry.base.name for entry in entries if entry.base is not None} | {entry.name for entry in entries}
    return [
        Entry(name, "removed", base=BaseRef(name, base.tensors[name].dtype, shape, digest))
        for name, _, shape, digest in base_rows
        if name not in known
    ]
