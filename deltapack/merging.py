"""Use case: base + several packs -> checkpoint, or one merged pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from math import prod
from pathlib import Path

from deltapack.applying import WriteOptions, write_checkpoint
from deltapack.errors import RecipeError
from deltapack.format.reader import PackReader
from deltapack.format.writer import open_pack_writer
from deltapack.measuring import measure
from deltapack.merge_planning import MergePlan, plan_merge
from deltapack.merge_recipe import MergeRecipe, Schedule, constant
from deltapack.merged_pack import MergedPack
from deltapack.reports import MergeReport, Progress

__all__ = ["merge"]

LARGEST_SUM_OF_WEIGHTS = 1.2
"""Above this sum merges are known to degrade (advice of mergekit's maintainers: 0 to 1.2)."""
MOSTLY = 0.5
"""Share of the changed elements whose weight `normalize` cancels, above which a warning is due."""


def merge(
    base: str | Path,
    packs: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    method: str = "linear",
    semantics: str | None = None,
    density: float | Sequence[float] | None = None,
    parameters: Mapping[str, float] | None = None,
    recipe: MergeRecipe | None = None,
    prefer: str | Path | None = None,
    assets: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    verify: bool = True,
    force: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge packs onto their common base, reading the base once.

    `linear` is task arithmetic: base + sum of weight * delta, summed in f32 in the order given and rounded once. The other methods
    are described in docs/merging.md. Where `out` ends in `.dpk` the result is a merged pack: applying it gives the same bits as
    merging into a folder.

    Args:
        base: Hugging Face folder, `.safetensors`, or PyTorch `.bin`/`.pt` state dict.
        packs: The packs, all made from this base.
        out: Folder, `.safetensors` file or `.dpk` pack to write.
        weights: One weight per pack, or one for all; 1 unless given.
        method: Name of a merge method; see `deltapack.merge_methods.table`.
        semantics: Whose formula, where tools differ: `"mergekit"` (the default), `"paper"` or `"peft"`.
        density: What share of a tensor's elements each pack may keep, or all of them, in (0, 1]; all that they keep unless given.
        parameters: The method's own, such as `{"lambda": 0.8, "normalize": True}`.
        recipe: All of these in one record, also with weights by layer; instead of `weights`, `method`, `semantics`, `density`,
            `parameters`.
        prefer: The pack (one of `packs`) that decides on tensors that cannot be added, and on side files.
        assets: The pack (one of `packs`) that config, tokenizer and chat template are from, if not `prefer`; or `"base"`.
        dtype: Type of all float tensors of the result; their own unless given. Not for a merged pack.
        max_shard_size: Bytes of a shard, or text such as `"5GB"`. Not for a merged pack.
        verify: Whether digests of the base are compared.
        force: Whether to replace an existing `out`.
        workers: Threads; every core unless given.
        progress: Called with bytes of the result done so far and in all.

    Raises:
        BaseMismatchError: A pack was made from another base.
        FormatError: A pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        OutputError: `out` exists or cannot be written.
        RecipeError: An argument is out of range.
    """
    out, options = Path(out), WriteOptions.of(dtype, max_shard_size, verify, force, workers, progress)
    recipe = recipe_of(weights, method, semantics, density, parameters) if recipe is None else recipe
    as_pack = out.suffix == ".dpk"
    if as_pack and (dtype is not None or max_shard_size is not None):
        raise RecipeError("dtype and max_shard_size are for checkpoints, not for a merged pack", path=out)
    with ExitStack() as stack:
        plan = plan_merge(stack, base, packs, recipe, prefer=prefer, assets=assets, dtype=options.dtype)
        plan = replace(plan, composition=measure(plan.base, plan.composition, options.workers))
        notes = plan.notes + _write(plan, out, options)
        jobs = plan.composition.jobs
        nbytes = sum(job.numel * job.dtype.itemsize for job in jobs)
        rows = list(zip(map(str, packs), _shown_weights(plan), strict=True))
        return MergeReport(out, len(jobs), nbytes, rows, _warnings(plan), notes)


def recipe_of(
    weights: Sequence[float] | None,
    method: str,
    semantics: str | None,
    density: float | Sequence[float] | None,
    parameters: Mapping[str, float] | None,
) -> MergeRecipe:
    """Return the recipe that these arguments of `merge` mean.

    Raises:
        RecipeError: One is out of range.
    """
    given = () if weights is None else tuple(constant(weight) for weight in weights)
    densities: tuple[Schedule, ...] = ()
    if density is not None:
        densities = tuple(map(constant, density if isinstance(density, Sequence) else [density]))
    return MergeRecipe(method, given, semantics, densities, dict(parameters or {}))


def _write(plan: MergePlan, out: Path, options: WriteOptions) -> list[str]:
    if out.suffix != ".dpk":
        return write_checkpoint(plan.base, plan.composition, out, plan.paths, options)
    with open_pack_writer(out, force=options.force, inputs=plan.paths) as writer:
        writer.finish(MergedPack(plan.base, plan.packs, plan.composition, writer, plan.stated_recipe(), options).index())
    return []


def _shown_weights(plan: MergePlan) -> list[float | None]:
    """Return the weight of each pack, as it was given; `None` where it depends on the tensor or the method has none."""
    if not plan.recipe.formula.weighted:
        return [None] * len(plan.packs)
    return [schedule.single for schedule in plan.recipe.weights] or [1.0] * len(plan.packs)


def _warnings(plan: MergePlan) -> list[str]:
    """Return sentences about the recipe and the packs that a person should read."""
    out, readers, method = [], [pack.reader for pack in plan.packs], plan.recipe.formula
    weights = [weight for weight in _shown_weights(plan) if weight is not None]
    normalized = bool(plan.recipe.options.get("normalize"))
    if len(weights) > 1 and not normalized and sum(weights) > LARGEST_SUM_OF_WEIGHTS:
        advice = "merges above 1.2 often lose quality; try --weight with less"
        out.append(f"the weights add up to {sum(weights):g}: {advice}")
    if normalized and not method.is_linear and len(readers) > 1:
        out += _normalize_warning(readers)
    for reader in readers:
        made_by = reader.index.recipe.get("method")
        if method.made_by is not None and made_by != method.made_by:
            out.append(f"{reader.path} was made with {made_by}, not {method.made_by}: {method.name} takes its elements as they are")
    for one, other in combinations(readers, 2):
        if _mask_keys(one) & _mask_keys(other):
            out.append(
                f"{one.path} and {other.path} keep the same positions (same seed and fine-tune): "
                "independent masks are what makes merging after dropping work"
            )
    return out


def _normalize_warning(readers: Sequence[PackReader]) -> list[str]:
    share = _kept_by_one(readers)
    if share < MOSTLY:
        return []
    return [
        f"normalize divides by the weights of the packs that agree, and {100 * share:.0f} % of the changed elements are kept by "
        "one pack only: there its weight has no effect. Without normalize (--no-normalize) weights mean what they say"
    ]


def _kept_by_one(readers: Sequence[PackReader]) -> float:
    """Return what share of the changed elements one pack only keeps, if masks are independent; from headers."""
    kept: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for reader in readers:
        for entry in reader.index.entries:
            if entry.terms and entry.common:
                sizes[entry.name] = entry.common
                kept.setdefault(entry.name, []).append(min(1.0, sum(term.nnz for term in entry.terms) / entry.common))
    touched = alone = 0.0
    for name, shares in kept.items():
        dropped = [1 - share for share in shares]
        touched += sizes[name] * (1 - prod(dropped))
        alone += sizes[name] * sum(share * prod(dropped[:place] + dropped[place + 1 :]) for place, share in enumerate(shares))
    return alone / touched if touched else 0.0


def _mask_keys(reader: PackReader) -> set[tuple[str, int, int]]:
    return {(entry.name, term.key, term.keep) for entry in reader.index.entries for term in entry.terms if term.keep}
