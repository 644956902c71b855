"""What merge formulas have to know of whole tensors: thresholds and sums, found in streaming passes over the packs.

The base is read for it only where a pack stores a tensor whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from itertools import groupby
from operator import add
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.composing.compose import Composition
from deltapack.composing.tensor_job import OwnTerm, PackTerm, StoredTerm, TensorJob
from deltapack.engines import spread_map
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.formulas import WeightedSum
from deltapack.kernels.layout import Elements
from deltapack.limits import DEFAULT_LIMITS
from deltapack.merging.blending import Blended, BlendedTerm, KeepLargest, KeepMiddle, KeepRandom, Wanted, blended, kept_at_most
from deltapack.merging.methods.settings import Parts
from deltapack.merging.methods.table import Measure, Score
from deltapack.sparsify.dare import mask_key
from deltapack.sparsify.ranking import Magnitudes, find_cuts

__all__ = ["Elementwise", "Jobs", "adds_own_terms", "as_sum", "as_sums", "measure", "measure_each", "thin_by_headers"]


def measure(base: Elementwise, composition: Composition, workers: int) -> Composition:
    """Find out what the formulas have to know of whole tensors, by streaming over the packs.

    Memory does not grow with the tensors, and neither the number of workers nor their speed changes a bit.

    Raises:
        FormatError: A pack is damaged.
        RecipeError: A pack cannot be thinned out at random.
    """
    found = {number: job for number, job in enumerate(map(blended, composition.jobs)) if job is not None and job.common}
    jobs = {number: job.made() for number, job in measure_each(base, found, workers).items()}
    return replace(composition, jobs=tuple(jobs.get(number, job) for number, job in enumerate(composition.jobs)))


def measure_each(base: Elementwise, jobs: Jobs, workers: int) -> dict[int, Blended]:
    """Do what `measure` does for blended jobs by number, all with common elements."""
    out = dict(jobs)
    for step in (_thin, _select, _gather):
        out |= step(base, out, workers)
    return out


def as_sums(composition: Composition) -> Composition:
    """Return a measured composition with `as_sum` of each job."""
    return replace(composition, jobs=tuple(map(as_sum, composition.jobs)))


def as_sum(job: TensorJob) -> TensorJob:
    """Fold the weights of a measured formula that is a weighted sum into the packs' own terms; nothing is left where no pack adds.

    Terms of packs are decoded on any device, and copied into a merged pack as they are.
    """
    found = blended(job)
    if found is None or not adds_own_terms(found.term):
        return job
    term = found.term
    if not any(term.by_pack) or not job.common:
        return found.with_terms(())
    formula = term.method.formula(term.settings)
    assert isinstance(formula, WeightedSum)
    shares = zip(formula.weights, term.by_pack, strict=True)
    return found.with_terms(tuple(part.times(weight) for weight, share in shares for part in share))


def adds_own_terms(term: BlendedTerm) -> bool:
    """Whether what a term adds is a weighted sum of the packs' own terms, no more than a pack can have; headers tell."""
    terms = sum(map(len, term.by_pack))
    return not terms or (term.method.adds_up and not any(term.thinned) and terms <= DEFAULT_LIMITS.terms)


class Elementwise(Protocol):
    """A base whose elements can be read."""

    def read(self, name: str, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of a tensor."""


Jobs = Mapping[int, Blended]
"""Blended jobs by their number in a composition."""


def thin_by_headers(job: Blended) -> Blended:
    """Replace the densities that were asked for, where headers tell what they mean: nothing to drop, or a share to drop at random.

    Raises:
        RecipeError: A pack cannot be thinned out at random.
    """
    if not job.common:
        return job
    term, thinned = job.term, list(job.term.thinned)
    for place, wanted in enumerate(thinned):
        if not isinstance(wanted, Wanted):
            continue
        count, kept = int(wanted.density * job.common), kept_at_most(term.by_pack[place], job.common)
        if kept <= count + (term.method.trim == "outliers"):
            thinned[place] = None  # it keeps less already (of breadcrumbs' own packs, rounding may keep one more): zeros stay
        elif term.method.trim == "random":
            thinned[place] = _random(job.job.name, term.by_pack[place], wanted.density * job.common / kept)
    return replace(job, term=replace(term, thinned=tuple(thinned)))


def _thin(base: Elementwise, jobs: Jobs, workers: int) -> dict[int, Blended]:
    """Replace the densities that were asked for by the elements to keep."""
    buffers, out = Buffers(), {number: thin_by_headers(job) for number, job in jobs.items()}
    requests: list[tuple[int, int]] = []
    tensors: list[Magnitudes] = []
    for number, job in out.items():
        for place, wanted in enumerate(job.term.thinned):
            if isinstance(wanted, Wanted):
                count = max(1, int(wanted.density * job.common))
                requests.append((number, place))
                tensors.append(Magnitudes(chunk_count(job.common), _reader(base, job, place, buffers), _ranks(job.term, job.common, count)))
    for (number, place), cuts in zip(requests, find_cuts(tensors, workers), strict=True):
        term = out[number].term
        found = KeepLargest(cuts[0]) if len(cuts) == 1 else KeepMiddle(*cuts)
        thinned = [found if other == place else old for other, old in enumerate(term.thinned)]
        out[number] = replace(out[number], term=replace(term, thinned=tuple(thinned)))
    return out


def _ranks(term: BlendedTerm, numel: int, count: int) -> Callable[[int], Sequence[int]]:
    if term.method.trim == "magnitude":
        return lambda nonzero: (count,)
    outliers = min(int(term.settings.options["gamma"] * numel), numel - count)
    return lambda nonzero: (count + outliers, outliers)


def _random(name: str, terms: Sequence[OwnTerm], share: float) -> KeepRandom:
    if len(terms) > 1 and not any(isinstance(term, PackTerm) and term.term.is_factors for term in terms):  # these keep everything
        reader = next(term.reader for term in terms if isinstance(term, PackTerm))
        hint = "Merge the packs that it was merged from, or thin out with --method ties."
        raise RecipeError("a merged pack cannot be thinned out at random", path=reader.path, tensor=name, hint=hint)
    reader = terms[0].reader if isinstance(terms[0], PackTerm) else terms[0].rows.reader
    return KeepRandom(mask_key(0, f"thinned\0{reader.pack_id}", name), share)


def _select(base: Elementwise, jobs: Jobs, workers: int) -> dict[int, Blended]:
    """Find the elements with the largest scores."""
    buffers, chosen, tensors = Buffers(), list[int](), list[Magnitudes]()
    for number, job in jobs.items():
        method, options = job.term.method, job.term.settings.options
        if method.score is not None and options["select_topk"] < 1:
            chosen.append(number)
            scores, top = _scores(base, job, method.score, buffers), _top(options["select_topk"])
            tensors.append(Magnitudes(chunk_count(job.common), scores, top))
    cuts = find_cuts(tensors, workers)
    return {
        number: replace(jobs[number], term=replace(jobs[number].term, selected=cut)) for number, (cut,) in zip(chosen, cuts, strict=True)
    }


def _top(share: float) -> Callable[[int], Sequence[int]]:
    return lambda nonzero: (int(nonzero * share),)


def _gather(base: Elementwise, jobs: Jobs, workers: int) -> dict[int, Blended]:
    """Add up what the formulas measure, chunk by chunk."""
    buffers = Buffers()

    def work(task: tuple[int, Measure, int]) -> NDArray[np.float64]:
        number, measured, chunk = task
        return measured(*_parts(base, jobs[number], chunk, buffers), jobs[number].term.settings)

    chosen = ((number, job, job.term.method.measure) for number, job in jobs.items())
    tasks = (
        (number, measured, chunk) for number, job, measured in chosen if measured is not None for chunk in range(chunk_count(job.common))
    )
    out = {}
    with closing(spread_map(work, tasks, workers, size=lambda task: CHUNK)) as results:
        for number, group in groupby(results, key=lambda result: result[0][0]):
            total = reduce(add, (part for _, part in group))
            term = jobs[number].term
            out[number] = replace(jobs[number], term=replace(term, settings=replace(term.settings, statistic=total)))
    return out


def _parts(base: Elementwise, job: Blended, chunk: int, buffers: Buffers) -> tuple[int, Parts]:
    """Return the length of a chunk and what enters the formula there."""
    elements = _elements(base, job, chunk)
    return len(elements), job.term.kept(chunk, elements, job.source.base.dtype, buffers.scratch(len(elements)))


def _scores(base: Elementwise, job: Blended, score: Score, buffers: Buffers) -> Callable[[int], NDArray[np.float32]]:
    return lambda chunk: score(*_parts(base, job, chunk, buffers))[1]


def _reader(base: Elementwise, job: Blended, place: int, buffers: Buffers) -> Callable[[int], NDArray[np.float32]]:
    def read(chunk: int) -> NDArray[np.float32]:
        elements = _elements(base, job, chunk)
        return job.term.kept_by(place, chunk, elements, job.source.base.dtype, buffers.scratch(len(elements)))[1]

    return read


def _elements(base: Elementwise, job: Blended, chunk: int) -> Elements:
    """Return the base's elements of a chunk, or as many zeros where no term looks at them."""
    start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, job.common)
    if any(isinstance(term, StoredTerm) for share in job.term.by_pack for term in share):
        return base.read(job.source.base.name, start, stop)
    return np.zeros(stop - start, job.source.base.dtype.storage)
