"""Use case: what a merge would do, from headers alone, refusing what the merge itself would refuse."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

from deltapack.checking import as_path
from deltapack.checkpoint.replace import check_output
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.composing.assets import side_files_bytes
from deltapack.composing.tensor_job import FromBase, PackTerm, TensorJob
from deltapack.errors import OutputError
from deltapack.format.atomic import check_free_space
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.writer import check_pack_output
from deltapack.merging.advice import shown_weights, warnings_of
from deltapack.merging.blending import blended
from deltapack.merging.measuring import adds_own_terms, thin_by_headers
from deltapack.merging.merge import refuse_for_packs
from deltapack.merging.merged_pack import check_terms
from deltapack.merging.planning import MergePlan, plan_merge
from deltapack.merging.recipe import MergeRecipe
from deltapack.merging.request import MergeChoices, MergeRequest
from deltapack.reports import PreviewReport
from deltapack.restoring.applying import WriteOptions
from deltapack.sources.inputs import check_protected, guarded
from deltapack.sources.remote_path import RemotePath

__all__ = ["preview_merge"]


@guarded
def preview_merge(
    base: str | Path,
    packs: Sequence[str | Path],
    out: str | Path,
    *,
    recipe: MergeRecipe | None = None,
    prefer: str | Path | None = None,
    assets: str | Path | None = None,
    vocab: str | Path | None = None,
    weight_files: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    force: bool = False,
    workers: int | None = None,
    device: str | None = None,
    backend: str = "auto",
) -> PreviewReport:
    """Check a merge without reading a tensor: names, shapes, types, vocabulary, method, disk, memory.

    The arguments are those of `merge`. What they would make `merge` refuse before it reads tensors is refused here, too; damaged
    chunks and another base with the same shapes are found only when they are read. An output that exists is warned of.

    Raises:
        BaseMismatchError: The base has other tensors than the packs' base.
        FormatError: The header of a pack is damaged.
        LimitError: There are too many packs for a merged pack.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        OutputError: `out` is an input or its folder is missing, or the disk is too small.
        RecipeError: An argument is out of range.
    """
    out, options = as_path("out", out), WriteOptions.of(dtype, max_shard_size, True, force, workers, None, device, backend)
    request = MergeRequest(base, packs, recipe or MergeRecipe(), MergeChoices(prefer, assets, vocab), weight_files)
    refuse_for_packs(out, options)
    with ExitStack() as stack:
        plan = plan_merge(stack, request, options.dtype, options.workers)
        plan = replace(plan, composition=replace(plan.composition, jobs=tuple(map(_foreseen, plan.composition.jobs))))
        taken = _check_output(plan, out, force)
        if out.suffix == ".dpk":
            check_terms(plan.composition.jobs)
        needed = _pack_bytes(plan) if out.suffix == ".dpk" else _checkpoint_bytes(plan)
        folder = Path(gettempdir()) if isinstance(out, RemotePath) else out.parent  # what is sent is made there, file by file
        if not isinstance(out, RemotePath):
            check_free_space(folder, needed, out)
        jobs, method = plan.composition.jobs, plan.recipe.formula
        return PreviewReport(
            out,
            method.name,
            method.text,
            list(zip(map(str, request.packs), shown_weights(plan), strict=True)),
            dict(sorted(Counter(map(_fate, jobs)).items())),
            dict(sorted(Counter(job.dtype.name for job in jobs).items())),
            [change for job in jobs if (change := _rows_change(job)) is not None],
            None if plan.composition.assets is None else str(plan.composition.assets.path),
            needed,
            shutil.disk_usage(folder).free,
            options.workers * max((_buffers(job) for job in jobs), default=0),
            [*taken, *warnings_of(plan)],
            plan.notes,
        )


def _foreseen(job: TensorJob) -> TensorJob:
    """Return a job as the merge will have it, as far as headers tell: weights may still have to be measured."""
    found = blended(job)
    if found is None:
        return job
    found = thin_by_headers(found)
    own_terms = tuple(own for share in found.term.by_pack for own in share)
    return found.with_terms(own_terms) if adds_own_terms(found.term) else found.made()


def _check_output(plan: MergePlan, out: Path, force: bool) -> list[str]:
    """Refuse an output that never can be; return what stands in the way of one that is there, for which a plan can still be shown."""
    pack = out.suffix == ".dpk"
    check_protected(out, plan.paths if pack else [plan.base.path, *plan.paths])
    try:
        if pack:
            check_pack_output(out, force=force)
        else:
            check_output(out, folder=out.suffix != ".safetensors", force=force)
    except OutputError as error:
        if not (out.exists() if isinstance(out, RemotePath) else os.path.lexists(out)) or not out.name:
            raise
        return [f"the merge itself would stop: {error}"]
    return []


def _fate(job: TensorJob) -> str:
    if job.terms:
        return "merged"
    return "from one pack" if job.source.rows is not None or _exact(job) is not None else "from the base"


def _exact(job: TensorJob) -> ExactTensor | None:
    """Return what a pack makes of the base's tensor exactly, if it is made so."""
    return job.source.exact if isinstance(job.source, FromBase) else None


def _rows_change(job: TensorJob) -> tuple[str, int, int] | None:
    """Return name, rows of the base and rows of the result, where they differ."""
    if not isinstance(job.source, FromBase) or not job.shape or job.shape == job.source.base.shape:
        return None
    return job.name, job.source.base.shape[0], job.shape[0]


def _checkpoint_bytes(plan: MergePlan) -> int:
    tensors = sum(job.nbytes for job in plan.composition.jobs)
    return tensors + _side_files_bytes(plan)


def _pack_bytes(plan: MergePlan) -> int:
    """Return at most how large a merged pack gets: the packs' own terms, or 32-bit sums with their positions."""
    total = 0
    for job in plan.composition.jobs:
        found = blended(job)
        total += sum(blob.length for own in job.terms if isinstance(own, PackTerm) for blob in own.term.blobs)
        total += sum(part.nbytes for part in (job.source.rows, _exact(job)) if part is not None)
        if found is not None:
            total += int(job.common * (4 * found.term.density(job.common) + 1 / 8))
        elif any(not isinstance(own, PackTerm) for own in job.terms):
            total += job.nbytes
    return total + _side_files_bytes(plan)


def _side_files_bytes(plan: MergePlan) -> int:
    return side_files_bytes(plan.base, plan.composition.assets) + sum(map(len, plan.files.values()))


def _buffers(job: TensorJob) -> int:
    """Return about how many bytes a thread needs for a chunk: base, result, positions and values of each pack, their union."""
    size = min(CHUNK, max(job.numel, job.common))
    out = size * (job.dtype.itemsize + (job.source.base.dtype.itemsize if isinstance(job.source, FromBase) else 0))
    found = blended(job)
    term = found.term if found is not None else None
    sources = [source for share in term.by_pack for source in share] if term is not None else job.terms
    kept = [source.term.nnz / max(1, job.common) if isinstance(source, PackTerm) else 1.0 for source in sources]
    out += int(size * (5 + 12 * max(kept, default=0.0) + 8 * sum(kept)))
    if term is not None:
        out += int(size * 8 * term.density(job.common)) + (20 * TILE * len(term.by_pack) if term.method.score is not None else 0)
    return out
