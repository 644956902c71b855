"""Use case: base + several packs -> checkpoint, or one merged pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from deltapack import kernels
from deltapack.checking import as_path, as_paths
from deltapack.cluster.choosing import using_engine
from deltapack.composing.basecheck import check_fingerprint
from deltapack.engines import Engine
from deltapack.errors import RecipeError
from deltapack.format.writer import open_pack_writer
from deltapack.kinds import EITHER, check_output_name
from deltapack.merging.advice import shown_weights, warnings_of
from deltapack.merging.arguments import Numbers, recipe_of
from deltapack.merging.measuring import as_sums, measure
from deltapack.merging.merged_pack import MergedPack
from deltapack.merging.modelcard import card_of
from deltapack.merging.planning import MergePlan, plan_merge
from deltapack.merging.recipe import MergeRecipe
from deltapack.merging.request import MergeChoices, MergeRequest
from deltapack.merging.surveying import survey
from deltapack.reports import MergeReport, Progress
from deltapack.restoring.applying import WriteOptions, refuse_for_file, write_checkpoint
from deltapack.restoring.provenance import merged
from deltapack.restoring.resuming import check_resume
from deltapack.sources.inputs import guarded
from deltapack.sources.remote_path import RemotePath

__all__ = ["merge", "refuse_for_packs"]


@guarded
def merge(
    base: str | Path,
    packs: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Numbers | None = None,
    method: str = "linear",
    semantics: str | None = None,
    density: Numbers | None = None,
    parameters: Mapping[str, float] | None = None,
    recipe: MergeRecipe | None = None,
    prefer: str | Path | None = None,
    assets: str | Path | None = None,
    vocab: str | Path | None = None,
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
    report: bool = False,
    resume: bool = False,
) -> MergeReport:
    """Merge packs onto their common base, reading the base once.

    `linear` is task arithmetic: base + sum of weight * delta, summed in f32 in the order given and rounded once. The other methods
    are described in docs/merging.md. Where `out` ends in `.dpk` the result is a merged pack: applying it gives the same bits as
    merging into a folder.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        packs: The packs, all made from this base; the folder of a PEFT adapter of it counts as the exact pack that is made of it, in a
            temporary folder beside `out`.
        out: Folder, `.safetensors` file or `.dpk` pack to write.
        weights: One weight per pack, or one for all, or a mapping from names of packs, such as `{"math": 0.6}`; 1 unless given.
        method: Name of a merge method; see `deltapack.merging.methods.table`.
        semantics: Whose formula, where tools differ: `"mergekit"` (the default), `"paper"` or `"peft"`.
        density: What share of a tensor's elements each pack may keep, or all of them, in (0, 1], likewise; all that they keep unless given.
        parameters: The method's own, such as `{"lambda": 0.8, "normalize": True}`.
        recipe: All of these in one record, also with weights by layer; instead of `weights`, `method`, `semantics`, `density`,
            `parameters`.
        prefer: The pack (one of `packs`) that decides on tensors that cannot be added, and on side files.
        assets: The pack (one of `packs`) that config, tokenizer and chat template are from, if not `vocab` or `prefer`; or `"base"`.
        vocab: The pack (one of `packs`) whose rows tensors have that packs grew, or `"base"`, or `"union"` for the new tokens of all packs;
            the only pack that grew them unless given.
        weight_files: Which weights count where the base's folder has one file and an index of shards that differ: `"single"` or `"index"`.
        dtype: Type of all float tensors of the result; their own unless given. Not for a merged pack.
        max_shard_size: Bytes of a shard, or text such as `"5GB"`. Not for a merged pack.
        verify: Whether digests of the base are compared.
        force: Whether to replace an existing `out`.
        workers: Threads; every core unless given.
        device: Where packs are decoded and added, such as `"cuda"`; the CPU unless given. Not for a merged pack.
        backend: `auto`, `cpu`, `torch` or `triton`. Not for a merged pack.
        engine: `"local"`, or `"ray"`: tensors are merged on a Ray cluster (docs/cluster.md). The output is the same.
        address: Address of the cluster, such as `"auto"`.
        progress: Called with bytes of the result done so far and in all.
        report: Whether to compare the packs, layer by layer, in one more pass over them.
        resume: Whether to go on where a run that was stopped or killed has left an unfinished `out`, a folder, as in `deltapack.apply`.

    Raises:
        BackendError: The device, backend or engine cannot be used here.
        BaseMismatchError: A pack was made from another base.
        FormatError: A pack is damaged.
        LimitError: There are too many packs for a merged pack.
        CheckpointError: A tokenizer file is damaged, and vocabularies are united.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide, or their vocabularies cannot be united.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
    """
    options = WriteOptions.of(dtype, max_shard_size, verify, force, workers, progress, device, backend, resume)
    paths = as_paths("packs", packs)
    if recipe is None:
        recipe = recipe_of(paths, weights, method, semantics, density, parameters)
    elif method != "linear" or any(given is not None for given in (weights, semantics, density, parameters)):
        raise RecipeError("recipe says it all: weights, method, semantics, density and parameters cannot be given, too")
    out = as_path("out", out)
    refuse_for_packs(out, options)
    check_resume(out, resume, engine)
    scratch = out.parent if not isinstance(out, RemotePath) and out.parent.is_dir() else None
    request = MergeRequest(base, paths, recipe, MergeChoices(prefer, assets, vocab), weight_files, scratch)
    with using_engine(engine, address, device=options.wants_device):
        return _merge(request, out, options, report=report)


def _merge(request: MergeRequest, out: Path, options: WriteOptions, *, report: bool) -> MergeReport:
    with ExitStack() as stack:
        plan = plan_merge(stack, request, options.dtype, options.workers)
        stack.enter_context(kernels.working_on(plan.base.tensors.values(), len(plan.packs)))
        plan = replace(plan, composition=as_sums(measure(plan.base, plan.composition, options.workers)))
        said = ["merge", plan.stated_recipe(), plan.stated_choices(request)]
        notes, lost = _write(plan, out, options, [*plan.paths, *as_paths("packs", request.packs)], said)
        jobs = plan.composition.jobs
        nbytes = sum(job.nbytes for job in jobs)
        rows = list(zip(map(str, request.packs), shown_weights(plan), strict=True))
        survey_report = survey(plan, options.workers) if report else None
        warnings = [*lost, *warnings_of(plan), *(survey_report.warnings if survey_report is not None else ())]
        return MergeReport(out, len(jobs), nbytes, rows, warnings, [*plan.notes, *notes], survey_report)


def refuse_for_packs(out: Path, options: WriteOptions) -> None:
    """Refuse a name that no output has, and what a merged pack, or a single file, cannot have.

    Raises:
        RecipeError: `out` is called as another kind of file, or is a pack, and an option for checkpoints is given; or a file, and one for
            folders is.
    """
    check_output_name(out, EITHER)
    refuse_for_file(out, options)
    if out.suffix != ".dpk":
        return
    if options.dtype is not None or options.max_shard_bytes is not None:
        raise RecipeError("dtype and max_shard_size are for checkpoints, not for a merged pack", path=out)
    if options.wants_device:
        raise RecipeError("device and backend are for checkpoints: a merged pack copies what the packs hold", path=out)


def _write(plan: MergePlan, out: Path, options: WriteOptions, inputs: list[Path], said: Sequence[object]) -> tuple[list[str], list[str]]:
    own = {**plan.files, **card_of(plan, options.dtype, in_pack=out.suffix == ".dpk")}
    if out.suffix != ".dpk":
        about = merged(plan.packs)
        packs = [pack.reader for pack in plan.packs]
        return write_checkpoint(plan.base, plan.composition, out, inputs, options, own_files=own, metadata=about, said=said, packs=packs)
    with open_pack_writer(out, force=options.force, inputs=inputs) as writer:
        merged_pack = MergedPack(plan.base, plan.packs, plan.composition, writer, plan.stated_recipe(), options, own)
        index = merged_pack.index()
        for pack in plan.packs if options.verify else ():
            check_fingerprint(pack.reader)
        writer.finish(index)
    return [], merged_pack.warnings
