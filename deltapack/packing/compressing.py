"""Use case: base checkpoint + fine-tuned checkpoint -> pack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from deltapack._version import __version__
from deltapack.checkpoint import Checkpoint, NameMatch, match_names, open_checkpoint, propose_arrangements
from deltapack.dtypes import BY_NAME
from deltapack.errors import OutputError
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, fingerprint
from deltapack.format.index import BaseRef, Entry, FileEntry, Index, features_of
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.kernels.buffers import Buffers
from deltapack.packing.encoding import ChunkOutcome, encode_chunk
from deltapack.packing.entries import Digests, EntryWriter
from deltapack.packing.planning import PackPlan, identity_of, plan_tensor
from deltapack.packing.recipe import Recipe
from deltapack.packing.report import compress_report
from deltapack.parallel import batches, ordered_map, resolve_workers
from deltapack.reports import CompressReport, Progress

__all__ = ["compress"]


def compress(
    base: str | Path,
    finetuned: str | Path,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    name_map: Sequence[tuple[str, str]] = (),
    include_code: bool = False,
    workers: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CompressReport:
    """Pack the difference between a fine-tuned checkpoint and its base.

    Reads both checkpoints once, in chunks of 1,048,576 elements (to rank elements by magnitude, two or three times more); memory does
    not grow with the model. The same inputs, recipe and zstd version give the same bytes, whatever the number of workers.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        finetuned: Likewise.
        out: The pack to write; it appears only when complete.
        recipe: How to compress; `Recipe()` drops 90 %.
        name_map: Pairs of regular expression and replacement that turn names of the fine-tune into names of the base.
        include_code: Whether Python files of the fine-tune travel inside.
        workers: Threads; every core unless given.
        force: Whether to replace an existing `out`.
        progress: Called with bytes of the fine-tune done so far and in all.

    Returns:
        Sizes, counts and warnings.

    Raises:
        CheckpointError: An input is damaged or not a checkpoint.
        NonFiniteError: A changed tensor holds NaN or Inf.
        OutputError: `out` exists or cannot be written.
        RecipeError: A setting is out of range.
    """
    recipe, out, count = recipe or Recipe(), Path(out), resolve_workers(workers)
    with open_checkpoint(base) as base_ckpt, open_checkpoint(finetuned) as tuned_ckpt:
        inputs = (*base_ckpt.weight_paths(), *tuned_ckpt.weight_paths())
        for checkpoint in (base_ckpt, tuned_ckpt):
            _protect(checkpoint, out)
        match = match_names(
            base_ckpt.tensors,
            tuned_ckpt.tensors,
            name_map,
            base_aliases=base_ckpt.aliases,
            finetuned_aliases=tuned_ckpt.aliases,
        )
        seen, match = propose_arrangements(base_ckpt, tuned_ckpt, match)
        split: dict[str, int] = {}
        with open_pack_writer(out, force=force, inputs=inputs) as writer:
            report = progress or (lambda done, total: None)
            run = _Run(seen, tuned_ckpt, recipe, match, count, report, Buffers())
            entry_writer = EntryWriter(writer, tuned_ckpt, recipe.non_finite == "store", split)
            entries, base_rows = run.write(entry_writer)
            files, left_out = _side_files(writer, base_ckpt, tuned_ckpt, include_code)
            index = _index(entries, base_rows, files, recipe)
            size = writer.finish(index)
        notes = [*base_ckpt.notes, *tuned_ckpt.notes, *match.notes, *left_out]
        checkpoint_bytes = sum(tensor.nbytes for tensor in tuned_ckpt.tensors.values())
    return compress_report(out, index, size, checkpoint_bytes, split, notes, recipe)


def _protect(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse to write over a file of an input's folder; an earlier pack there may be replaced.

    Raises:
        OutputError: It would.
    """
    if checkpoint.is_folder and out.exists() and out.suffix != ".dpk" and out.resolve().is_relative_to(checkpoint.path.resolve()):
        raise OutputError("the output is a file of an input", path=out, hint="Choose another name.")


BaseRow = tuple[str, str, tuple[int, ...], str]


@dataclass(frozen=True)
class _Job:
    """One tensor: of the fine-tune (with a plan), or one that only the base has."""

    name: str
    plan: PackPlan | None


_Task = tuple[_Job, int]
_Result = tuple[_Job, ChunkOutcome]


def _size(task: _Task) -> int:
    """Return about how many elements a task reads."""
    job, _ = task
    return CHUNK if job.plan is None else min(CHUNK, job.plan.tensor.numel)


@dataclass(frozen=True)
class _Run:
    """One compression: a stream of chunk tasks whose outcomes come back in order.

    `base` also has the tensors that the fine-tune has in another layout, made of its own, which `base.files` has alone.
    """

    base: Checkpoint
    finetuned: Checkpoint
    recipe: Recipe
    match: NameMatch
    workers: int
    progress: Progress
    buffers: Buffers

    def write(self, entry_writer: EntryWriter) -> tuple[list[Entry], list[BaseRow]]:
        """Write the blobs of every tensor; return the entries by name and the base's digests."""
        entries, base_rows = [], []
        with closing(ordered_map(self._encode_all, batches(self._tasks(), _size, CHUNK), self.workers)) as results:
            for job, group in groupby(self._counted(chain.from_iterable(results)), key=lambda result: result[0]):
                outcomes = (outcome for _, outcome in group)
                if job.plan is None:
                    digests = Digests()
                    for outcome in outcomes:
                        digests.add(outcome)
                else:
                    entry, digests = entry_writer.write(job.plan, outcomes)
                    entries.append(entry)
                base = self.base.files.tensors[job.name] if job.plan is None else job.plan.base
                if base is not None and base.arranged is None:
                    base_rows.append((base.name, base.dtype.name, base.shape, digests.base_root(base)))
        entries += [Entry(name, "alias", of=of) for name, of in self.finetuned.aliases.items()]
        entries += _removed(base_rows, entries)
        return sorted(entries, key=lambda entry: entry.name.encode()), base_rows

    def _counted(self, results: Iterable[_Result]) -> Iterator[_Result]:
        """Pass results on and report progress."""
        done, total = 0, sum(tensor.nbytes for tensor in self.finetuned.tensors.values())
        for job, outcome in results:
            if job.plan is not None:
                done += outcome.elements * job.plan.tensor.dtype.itemsize
                self.progress(done, total)
            yield job, outcome

    def _encode_all(self, batch: list[_Task]) -> list[_Result]:
        return list(map(self._encode, batch))

    def _encode(self, task: _Task) -> _Result:
        job, chunk = task
        if job.plan is not None:
            return job, encode_chunk(self.base, self.finetuned, job.plan, chunk, self.buffers)
        numel = self.base.files.tensors[job.name].numel
        elements = self.base.files.read(job.name, min(chunk * CHUNK, numel), min((chunk + 1) * CHUNK, numel))
        return job, ChunkOutcome(chunk_digest(elements) if len(elements) else None)

    def _tasks(self) -> Iterator[_Task]:
        identity = identity_of(self.finetuned)
        partners = self._partners()
        for name in sorted(self.finetuned.tensors, key=str.encode):
            plan = plan_tensor(self.base, self.finetuned, partners.get(name), name, self.recipe, identity, self.workers)
            numel = max(plan.tensor.numel, plan.base.numel if plan.base is not None else 0)
            # A tensor without elements still is one task, so that it gets its entry.
            for chunk in range(max(1, chunk_count(numel))):
                yield _Job(name, plan), chunk
        used = {name for name in partners.values() if self.base.tensors[name].arranged is None}
        for name in sorted(set(self.base.files.tensors) - used, key=str.encode):
            for chunk in range(max(1, chunk_count(self.base.files.tensors[name].numel))):
                yield _Job(name, None), chunk

    def _partners(self) -> dict[str, str]:
        """Return base names by fine-tuned names, so that every base tensor can be accounted for.

        A base tensor that nothing uses is listed as removed, under its own name. If the fine-tune has that name for a tensor that
        was matched with another one, the match is given up and the tensor stored whole.
        """
        partners = dict(self.match.base_of)
        while True:
            used = set(partners.values())
            clash = [name for name in partners if name in self.base.tensors and name not in used]
            if not clash:
                return partners
            for name in clash:
                del partners[name]


def _removed(base_rows: Sequence[BaseRow], entries: Sequence[Entry]) -> list[Entry]:
    """Return an entry for each base tensor that no entry uses or, under its name, replaces."""
    known = {entry.base.name for entry in entries if entry.base is not None} | {entry.name for entry in entries}
    return [
        Entry(name, "removed", base=BaseRef(name, BY_NAME[dtype], shape, digest))
        for name, dtype, shape, digest in base_rows
        if name not in known
    ]


def _side_files(
    writer: PackWriter, base: Checkpoint, finetuned: Checkpoint, include_code: bool
) -> tuple[tuple[FileEntry, ...] | None, list[str]]:
    """Write the side files that differ from the base's; return all of them, and what was left out, in words."""
    if not finetuned.is_folder:
        return None, []
    files, left_out = finetuned.list_side_files(include_code)
    at_base = {file.name: file for file in base.list_side_files(include_code=True)[0]} if base.is_folder else {}
    entries = []
    for file in sorted(files, key=lambda file: file.name.encode()):
        data = file.read()
        twin = at_base.get(file.name)
        entries.append(writer.side_file(file.name, data, carry=twin is None or twin.read() != data))
    return tuple(entries), [f"left out {item.name}: {item.reason}" for item in left_out]


def _index(entries: Sequence[Entry], base_rows: Sequence[BaseRow], files: tuple[FileEntry, ...] | None, recipe: Recipe) -> Index:
    result = [(entry.name, entry.dtype.name, entry.shape, entry.digest) for entry in entries if entry.in_result]
    return Index(
        base_fingerprint=fingerprint(base_rows),
        base_tensors=len(base_rows),
        result_fingerprint=fingerprint(result),
        result_tensors=len(result),
        result_bytes=sum(entry.nbytes for entry in entries),
        recipe=recipe.to_json(),
        entries=tuple(entries),
        files=files,
        created_by=f"deltapack {__version__}",
        required=features_of(entries),
    )
