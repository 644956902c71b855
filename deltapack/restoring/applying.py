"""Use case: base + pack -> checkpoint."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from deltapack import kernels
from deltapack.checking import as_count, as_path
from deltapack.checkpoint import Checkpoint, FileWriter, open_checkpoint, open_writer, parse_size
from deltapack.cluster.choosing import using_engine
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import check_base_files, check_intact, copy_side_files, side_files_bytes, with_dtype
from deltapack.composing.basecheck import check_fingerprint
from deltapack.composing.chain import in_order, open_links, paths_of, restored_from
from deltapack.composing.compose import Composition, compose
from deltapack.composing.containers import WeightFiles
from deltapack.composing.metadata import result_metadata
from deltapack.composing.tensor_job import TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType, float_dtype
from deltapack.engines import Engine, active
from deltapack.errors import RecipeError
from deltapack.format.atomic import sweep
from deltapack.format.index import Index
from deltapack.format.reader import PackReader
from deltapack.kinds import CHECKPOINT, check_output_name
from deltapack.packing.kinship import shortened
from deltapack.packing.roles import roles_of
from deltapack.parallel import resolve_workers
from deltapack.reports import ApplyReport, Progress
from deltapack.restoring.engine import RestoredTensor, restore_tensors, told_of
from deltapack.restoring.notes import not_written, of_rescale
from deltapack.restoring.outputs import Elsewhere, Output
from deltapack.restoring.present import is_there
from deltapack.restoring.promised import Promise
from deltapack.restoring.provenance import restored as own_metadata
from deltapack.restoring.resuming import by_file, check_resume, goes_on
from deltapack.restoring.sending import jobs_to_send
from deltapack.restoring.weight_files import files_like_base, finetuned_files
from deltapack.sources.inputs import guarded

__all__ = ["WriteOptions", "apply", "changed_statistics", "refuse_for_file", "write_checkpoint"]


@guarded
def apply(
    base: str | Path,
    pack: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weight: float = 1.0,
    rescale: float | None = None,
    weight_files: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    verify: bool = True,
    force: bool = False,
    workers: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    engine: str | Engine = "local",
    address: str | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> ApplyReport:
    """Restore the fine-tuned checkpoint from its base and a pack, or a chain of packs: each was made from what the one before gives.

    Every base tensor is checked against the digest of the one that the pack was made from. With the pack's own weight,
    rescale and dtype every restored tensor is checked, too. `out` appears only when all is well. A chain is put in order and checked by
    its digests before anything is written; the base is read once, and no state in between is ever written. An `out` that holds what a
    chain or an exact pack gives is left as it is. A pack that holds the headers of the fine-tune's weight files (`Recipe(exact=True)`)
    restores these files byte for byte, unless another result or layout is asked for.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        pack: The pack, or a list of them: a chain.
        out: Folder to write, or a file if it ends in `.safetensors`.
        weight: Factor for the whole difference; 0 gives the base. Only for one pack, as is `rescale`.
        rescale: Factor above 0 instead of the 1 / (1 - drop_rate) that the pack holds (DAREx-q, arXiv 2410.09344); where nothing was
            dropped, as from vectors, it has no effect.
        weight_files: Which weights count where the base's folder has one file and an index of shards that differ: `"single"` or `"index"`.
        dtype: Type of all float tensors of the result, such as `"bf16"`; their own unless given.
        max_shard_size: Bytes of a shard, or text such as `"5GB"`; the base's layout unless given.
        verify: Whether digests are compared.
        force: Whether to replace an existing `out`.
        workers: Threads; every core unless given.
        device: Where the differences are decoded and added, such as `"cuda"`; the CPU unless given. The output is the same.
        backend: `auto`, `cpu`, `torch` or `triton`.
        engine: `"local"`, or `"ray"`: tensors are restored on a Ray cluster (docs/cluster.md). The output is the same.
        address: Address of the cluster, such as `"auto"`.
        progress: Called with bytes of the result done so far and in all.
        resume: Whether to go on where a run that was stopped or killed has left an unfinished `out`, a folder: weight files that it
            finished are checked and not made again, where base, packs and options are the same. What this run finishes stays if it stops.

    Raises:
        BackendError: The device, backend or engine cannot be used here.
        BaseMismatchError: This is not the base of the pack, or the packs are no chain.
        FormatError: A pack is damaged.
        LimitError: There are more than 1,000 packs.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
    """
    out, options = as_path("out", out), WriteOptions.of(dtype, max_shard_size, verify, force, workers, progress, device, backend, resume)
    check_output_name(out, CHECKPOINT)
    check_resume(out, resume, engine)
    paths = _links(pack, weight, rescale)
    with (
        open_checkpoint(base, weights=weight_files) as files,
        open_links(paths) as packs,
        kernels.working_on(files.tensors.values(), len(packs)),
        using_engine(engine, address, device=options.wants_device),
    ):
        *before, reader = in_order(packs)
        base_ckpt = restored_from(files, before, verify=verify)
        weighted, seen = WeightedPack(reader, weight, rescale), arranged_base(base_ckpt, [reader])
        composition = compose(seen, [weighted], dtype=options.dtype)
        jobs = composition.jobs
        kept, told = finetuned_files(base_ckpt, weighted, out, dtype=options.dtype, shard_bytes=options.max_shard_bytes)
        same, may_be_there = 0 if kept is None else len(kept[0]), before or reader.index.is_exact
        if may_be_there and not force and max_shard_size is None and is_there(out, seen, composition, options.workers, kept):
            sweep(out)
            there = f"{out} holds what the {'chain' if before else 'pack'} gives already: every tensor was compared, nothing was written"
            told, nbytes = [*base_ckpt.notes, *composition.notes, there], sum(job.nbytes for job in jobs)
            return ApplyReport(out, len(jobs), nbytes, True, told, written=False, weight_files=same)
        own = own_metadata(weighted, composition, verify=verify)
        said = ["apply", *(pack.pack_id for pack in (*before, reader)), weight, rescale]
        promise = Promise(weighted, options.dtype, verify)
        written, warnings = write_checkpoint(
            seen, composition, out, paths, options, metadata=own, files=kept, said=said, packs=(*before, reader), promise=promise
        )
        notes = [*of_rescale(weighted), *written]
        changed = changed_statistics(reader.index) if weight not in (0, 1) else []
        if changed:
            notes.append(
                f"statistics went by the weight as well, which may make a variance negative: {shortened(changed)}; measure them again"
            )
        verified = verify and weighted.is_plain and all(job.digest for job in jobs)
        nbytes = sum(job.nbytes for job in jobs)
        said_of_all = [*base_ckpt.notes, *composition.notes, *told, *notes]
        return ApplyReport(out, len(jobs), nbytes, verified, said_of_all, weight_files=same, warnings=warnings)


def _links(pack: str | Path | Sequence[str | Path], weight: float, rescale: float | None) -> list[Path]:
    """Return the paths of a chain, be it of one pack.

    Raises:
        RecipeError: They are no paths, none, or several with a weight.
    """
    paths = paths_of(pack)
    if len(paths) > 1 and (weight != 1 or rescale is not None):
        what = "weight" if weight != 1 else "rescale"
        hint = "Each pack of a chain follows what the one before gives in full. `deltapack merge` takes weights, for packs of one base."
        raise RecipeError(f"{what} is for one pack", found=f"a chain of {len(paths)}", hint=hint)
    return paths


def changed_statistics(index: Index) -> list[str]:
    """Return the statistics, such as running variances, that a pack changes."""
    entries = {entry.name: entry for entry in index.entries if entry.in_result and entry.kind != "unchanged"}
    roles = roles_of({entry.name: entry for entry in index.entries if entry.in_result})
    return [name for name in entries if roles[name] == "statistic"]


@dataclass(frozen=True)
class WriteOptions:
    """How a checkpoint is restored and written; the arguments of `apply`, checked."""

    dtype: DType | None
    max_shard_bytes: int | None
    verify: bool
    force: bool
    workers: int
    progress: Progress
    device: str | None = None
    backend: str = "auto"
    resume: bool = False

    @property
    def wants_device(self) -> bool:
        """Whether a device or a backend was asked for."""
        return self.device is not None or self.backend != "auto"

    @classmethod
    def of(
        cls,
        dtype: str | None,
        max_shard_size: int | str | None,
        verify: bool,
        force: bool,
        workers: int | None,
        progress: Progress | None,
        device: str | None = None,
        backend: str = "auto",
        resume: bool = False,
    ) -> WriteOptions:
        """Check the arguments.

        Raises:
            RecipeError: One is out of range.
        """
        limit = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
        if limit is not None:
            as_count("max_shard_size", limit, 'a whole number of bytes, or text such as "5GB"')
        report = progress or (lambda done, total: None)
        kind, count = None if dtype is None else float_dtype(dtype), resolve_workers(workers)
        return cls(kind, limit, verify, force, count, report, device, backend, resume)


def write_checkpoint(
    base: Checkpoint,
    composition: Composition,
    out: Path,
    protect: list[Path],
    options: WriteOptions,
    own_files: Mapping[str, bytes] = MappingProxyType({}),
    metadata: Mapping[str, str] = MappingProxyType({}),
    files: WeightFiles | None = None,
    said: Sequence[object] = (),
    packs: Sequence[PackReader] = (),
    promise: Promise | None = None,
) -> tuple[list[str], list[str]]:
    """Restore every tensor of a composition into a checkpoint; return notes, and warnings of results that are of no use.

    `own_files` are written besides the side files, and instead of those of the same names; `metadata` are said by files of
    tensors besides those that `result_metadata` composes, unless `files` says which weight files there are and how they begin. `said`
    names packs and what is made of them, as values of JSON: a run that says the same may go on with what this one has written.
    `promise` is compared with what was restored before `out` appears, and with the digests of `packs` the base that each of them names.
    """
    refuse_for_file(out, options)
    if out.suffix != ".safetensors":  # one file has nothing beside it
        check_base_files(base, composition.assets, verify=options.verify)
    shards, indices = (files_like_base(base, composition, options.max_shard_bytes), None) if files is None else files
    with open_writer(
        out,
        shards,
        force=options.force,
        protect=[base.path, *protect],
        aliases=composition.aliases,
        metadata=result_metadata(base, composition.metadata, composition.folders, metadata),
        side_bytes=side_files_bytes(base, composition.assets) + sum(map(len, own_files.values())),
        indices=indices,
        goes_on=goes_on(base, said, options.resume, options.dtype, options.max_shard_bytes, options.verify),
    ) as writer:
        jobs = by_file(jobs_to_send(base, composition.jobs, shards, writer, verify=options.verify), shards, writer)
        restoring, notes = _restoring(base, jobs, Output(base, writer), options)
        with closing(restoring) as tensors:
            restored = list[RestoredTensor]()
            for tensor in tensors:
                writer.finished(tensor.job.name, tensor.job.digest if options.verify else "")
                restored.append(tensor)
        warnings = told_of(restored)
        for pack in packs if options.verify else ():  # last: a wrong base, or damage, is said to be that
            check_fingerprint(pack)
        if promise is not None:
            sent = {job.name for job in jobs}  # the others were there, or a store copies them
            left = [job for job in composition.jobs if job.name not in sent]
            promise.check_tensors([*(tensor.job for tensor in restored), *left], composition.aliases)
        for name, data in own_files.items():
            writer.write_side_file(name, with_dtype(name, data, options.dtype))

        beside = set[str]()

        def write_other(name: str, data: bytes) -> None:
            beside.add(name)
            if name not in own_files:
                writer.write_side_file(name, data)

        if writer.there:
            notes.append(f"{len(writer.there):,} tensors were there, in files that a stopped run had finished: checked, and not made again")
        if isinstance(writer, FileWriter):
            check_intact(base, composition.assets)
            return [*notes, *not_written(composition, own_files)], warnings
        side = copy_side_files(base, composition.assets, write_other, verify=options.verify, dtype=options.dtype)
        if promise is not None:
            promise.check_files(beside)
        return [*notes, *side], warnings


def refuse_for_file(out: Path, options: WriteOptions) -> None:
    """Refuse what a single file cannot have.

    Raises:
        RecipeError: `out` is one file, and a size of shards is given.
    """
    if out.suffix == ".safetensors" and options.max_shard_bytes is not None:
        raise RecipeError("max_shard_size is for folders: the output is one file", path=out)


def _restoring(
    base: Checkpoint, jobs: Sequence[TensorJob], sink: Output, options: WriteOptions
) -> tuple[Generator[RestoredTensor, None, None], list[str]]:
    """Return what restores the jobs where the options say, and what the user should be told of it."""
    verify, workers, progress = options.verify, options.workers, options.progress
    notes: list[str] = []
    if options.wants_device:
        # Only here is torch needed.
        from deltapack.restoring.on_device import place_of, restore_on_device

        place, note = place_of(options.device, options.backend)
        notes = [note]
        if place is not None:
            return restore_on_device(base, jobs, sink, place, verify=verify, workers=workers, progress=progress), notes
    if active() is None:
        return restore_tensors(base, jobs, sink, verify=verify, workers=workers, progress=progress), notes
    there = Elsewhere(base, sink.writer.elsewhere())
    return restore_tensors(base, jobs, there, verify=verify, workers=workers, progress=progress, finished=sink.written), notes
