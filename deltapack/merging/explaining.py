"""Use case: the formula of a merge with the numbers of one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from deltapack.composing.chunks import restore_chunk
from deltapack.composing.compose import Composition
from deltapack.composing.tensor_job import TensorJob
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.kernels import rounding
from deltapack.kernels.buffers import Buffers
from deltapack.merging.blending import Blended, BlendedTerm, KeepLargest, KeepMiddle, KeepRandom, blended
from deltapack.merging.measuring import as_sums, measure, measure_each
from deltapack.merging.methods.linear import linear
from deltapack.merging.methods.settings import Parts, count_signs
from deltapack.merging.planning import MergePlan, plan_merge
from deltapack.merging.recipe import MergeRecipe
from deltapack.merging.request import MergeChoices, MergeRequest
from deltapack.parallel import resolve_workers
from deltapack.reports import ExplainReport, ExplainRow
from deltapack.sources.inputs import guarded

__all__ = ["explain_merge"]


@guarded
def explain_merge(
    base: str | Path,
    packs: Sequence[str | Path],
    tensor: str | None = None,
    *,
    recipe: MergeRecipe | None = None,
    prefer: str | Path | None = None,
    vocab: str | Path | None = None,
    weight_files: str | None = None,
    workers: int | None = None,
) -> ExplainReport:
    """Return the formula of a merge with the numbers of one element: what each pack says, what is added, what comes out.

    Args:
        base: The common base.
        packs: The packs.
        tensor: Name of a merged tensor; the largest that most packs change unless given.
        recipe: How to merge; `linear` unless given.
        prefer: As for `merge`.
        vocab: As for `merge`.
        weight_files: As for `merge`.
        workers: Threads; every core unless given.

    Raises:
        BaseMismatchError: A pack was made from another base.
        FormatError: A pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and neither `prefer` nor `vocab` decides.
        RecipeError: The recipe does not fit the packs, or no such tensor is merged.
    """
    with ExitStack() as stack:
        request = MergeRequest(base, packs, recipe or MergeRecipe(), MergeChoices(prefer, vocab=vocab), weight_files)
        plan = plan_merge(stack, request, workers=resolve_workers(workers))
        apart = plan.side_by_side()
        count = resolve_workers(workers)
        job = measure_each(plan.base, {0: _chosen(apart, tensor)}, count)[0]
        jobs = tuple(own for own in plan.composition.jobs if own.name == job.job.name)
        (actual,) = as_sums(measure(plan.base, replace(plan.composition, jobs=jobs), count)).jobs
        return _explained(plan, job, actual)


def _chosen(composition: Composition, wanted: str | None) -> Blended:
    merged = [job for job in map(blended, composition.jobs) if job is not None and job.common]
    if wanted is None and merged:
        return max(merged, key=lambda job: (sum(bool(share) for share in job.term.by_pack), job.job.numel))
    found = next((job for job in merged if job.job.name == wanted), None)
    if found is None:
        hint = "`deltapack inspect` lists the tensors that a pack changes."
        raise RecipeError("no such tensor is merged", tensor=wanted, hint=hint)
    return found


def _explained(plan: MergePlan, job: Blended, actual: TensorJob) -> ExplainReport:
    base, term, buffers = job.source.base, job.term, Buffers()
    source = base.dtype
    for chunk in range(chunk_count(job.common)):
        elements = plan.base.read(base.name, chunk * CHUNK, min((chunk + 1) * CHUNK, job.common))
        kept = term.kept(chunk, elements, source, buffers.scratch(len(elements)))
        if any(len(positions) for positions, _ in kept):
            break
    else:
        raise RecipeError("no pack keeps anything of this tensor", tensor=job.job.name)
    place = _telling(len(elements), kept)
    deltas = [float(values[positions == place].sum()) for positions, values in kept]
    shares = [int(np.count_nonzero(values)) / len(elements) for _, values in kept]
    scratch = buffers.scratch(len(elements))
    positions, sums = linear(len(elements), [own.chunk(chunk, elements, source, scratch) for own in actual.terms])
    result = restore_chunk(plan.base, actual, chunk, buffers).elements
    was = float(rounding.to_f64(elements[place : place + 1], source)[0])
    comes_out = float(rounding.to_f64(result[place : place + 1], actual.dtype)[0])
    at = np.flatnonzero(positions == place)
    rows = [
        ExplainRow(
            str(plan.paths[pack]),
            float(term.settings.weights[row]),
            shares[row],
            deltas[row],
        )
        for row, pack in enumerate(term.packs)
    ]
    return ExplainReport(
        job.job.name,
        chunk * CHUNK + place,
        term.method.text,
        term.settings.options,
        _measured(term),
        rows,
        was,
        # A tensor that its only pack stores whole is copied, nothing is added.
        float(sums[at[0]]) if len(at) else comes_out - was,
        comes_out,
    )


def _telling(length: int, kept: Parts) -> int:
    """Return the first of the kept elements that most packs change, with both signs if there is one."""
    positive, negative = count_signs(length, kept)
    score = 4 * (positive + negative) + 2 * ((positive > 0) & (negative > 0))
    for positions, _ in kept:
        score[positions] |= 1
    return int(np.argmax(score))


def _measured(term: BlendedTerm) -> Mapping[str, Sequence[float]]:
    """Return what was measured over the tensor."""
    out: dict[str, Sequence[float]] = {}
    if term.settings.statistic.size:
        out[term.method.measured] = term.settings.statistic.reshape(-1).tolist()
    for name, kind in (("kept from |delta|", KeepLargest), ("kept from |delta|", KeepMiddle)):
        cuts = [_value(thinning.cut.bits) for thinning in term.thinned if isinstance(thinning, kind)]
        if cuts:
            out[name] = cuts
    outliers = [_value(thinning.outliers.bits) for thinning in term.thinned if isinstance(thinning, KeepMiddle)]
    if outliers:
        out["outliers above |delta|"] = outliers
    shares = [thinning.share for thinning in term.thinned if isinstance(thinning, KeepRandom)]
    if shares:
        out["share of the kept elements that stays"] = shares
    return out


def _value(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))
