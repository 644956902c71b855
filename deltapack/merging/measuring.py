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
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.formulas import WeightedSum
from deltapack.kernels.layout import Elements
from deltapack.limits import DEFAULT_LIMITS
from deltapack.merging.blending import BlendedTerm, KeepLargest, KeepMiddle, KeepRandom, Wanted, blended, kept_at_most
from deltapack.merging.methods.settings import Parts
from deltapack.parallel import ordered_map
from deltapack.sparsify.dare import mask_key
from deltapack.sparsify.ranking import Magnitudes, find_cuts

__all__ = ["Elementwise", "adds_own_terms", "as_sum", "as_sums", "measure", "thin_by_headers"]


def measure(base: Elementwise, composition: Composition, workers: int) -> Composition:
    """Find out what the formulas have to know of whole tensors, by streaming over the packs.

    Memory does not grow with the tensors, and neither the number of workers nor their speed changes a bit.

    Raises:
        FormatError: A pack is damaged.
        RecipeError: A pack cannot be thinned out at random.
    """
    jobs = {number: job for number, job in enumerate(composition.jobs) if blended(job) is not None and job.common}
    for step in (_thin, _select, _gather):
        jobs |= step(base, jobs, workers)
    return replace(composition, jobs=tuple(jobs.get(number, job) for number, job in enumerate(composition.jobs)))


def as_sums(composition: Composition) -> Composition:
    """Return a measured composition with `as_sum` of each job."""
    return replace(composition, jobs=tuple(map(as_sum, composition.jobs)))


def as_sum(job: TensorJob) -> TensorJob:
    """Fold the weights of a measured formula that is a weighted sum into the packs' own terms; nothing is left where no pack adds.

    Terms of packs are decoded on any device, and copied into a merged pack as they are.
    """
    term = blended(job)
    if term is None or not adds_own_terms(term):
        return job
    if not any(term.by_pack) or not job.common:
        return replace(job, terms=())
    formula = term.method.formula(term.settings)
    assert isinstance(formula, WeightedSum)
    shares = zip(formula.weights, term.by_pack, strict=True)
    return replace(job, terms=tuple(part.times(weight) for weight, share in shares for part in share))


def adds_own_terms(term: BlendedTerm) -> bool:
    """Whether what a term adds is a weighted sum of the packs' own terms, no more than a pack can have; headers tell."""
    terms = sum(map(len, term.by_pack))
    return not terms or (term.method.adds_up and not any(term.thinned) and terms <= DEFAULT_LIMITS.terms)


class Elementwise(Protocol):
    """A base whose elements can be read."""

    def read(self, name: str, start: int, stop: int) -> Elements:
        """Return elements [start, stop) of a tensor."""


_Jobs = Mapping[int, TensorJob]


def thin_by_headers(job: TensorJob) -> TensorJob:
    """Replace the densities that were asked for, where headers tell what they mean: nothing to drop, or a share to drop at random.

    Raises:
        RecipeError: A pack cannot be thinned out at random.
    """
    term = blended(job)
    if term is None or not job.common:
        return job
    thinned = list(term.thinned)
    for place, wanted in enumerate(thinned):
        if not isinstance(wanted, Wanted):
            continue
        count, kept = int(wanted.density * job.common), kept_at_most(term.by_pack[place], job.common)
        if kept <= count + (term.method.trim == "outliers"):
            thinned[place] = None  # it keeps less already (of breadcrumbs' own packs, rounding may keep one more): zeros stay
        elif term.method.trim == "random":
            thinned[place] = _random(job, term.by_pack[place], wanted.density * job.common / kept)
    return _with(job, replace(term, thinned=tuple(thinned)))


def _thin(base: Elementwise, jobs: _Jobs, workers: int) -> dict[int, TensorJob]:
    """Replace the densities that were asked for by the elements to keep."""
    buffers, out = Buffers(), {number: thin_by_headers(job) for number, job in jobs.items()}
    requests: list[tuple[int, int]] = []
    tensors: list[Magnitudes] = []
    for number, job in out.items():
        term = _blended(job)
        for place, wanted in enumerate(term.thinned):
            if isinstance(wanted, Wanted):
                count = max(1, int(wanted.density * job.common))
                requests.append((number, place))
                tensors.append(Magnitudes(chunk_count(job.common), _reader(base, job, place, buffers), _ranks(term, job.common, count)))
    for (number, place), cuts in zip(requests, find_cuts(tensors, workers), strict=True):
        term = _blended(out[number])
        found = KeepLargest(cuts[0]) if len(cuts) == 1 else KeepMiddle(*cuts)
        thinned = [found if other == place else old for other, old in enumerate(term.thinned)]
        out[number] = _with(out[number], replace(term, thinned=tuple(thinned)))
    return out


def _ranks(term: BlendedTerm, numel: int, count: int) -> Callable[[int], Sequence[int]]:
    if term.method.trim == "magnitude":
        return lambda nonzero: (count,)
    outliers = min(int(term.settings.options["gamma"] * numel), numel - count)
    return lambda nonzero: (count + outliers, outliers)


def _random(job: TensorJob, terms: Sequence[OwnTerm], share: float) -> KeepRandom:
    if len(terms) > 1:
        reader = next(term.reader for term in terms if isinstance(term, PackTerm))
        hint = "Merge the packs that it was merged from, or thin out with --method ties."
        raise RecipeError("a merged pack cannot be thinned out at random", path=reader.path, tensor=job.name, hint=hint)
    reader = terms[0].reader if isinstance(terms[0], PackTerm) else terms[0].rows.reader
    return KeepRandom(mask_key(0, f"thinned\0{reader.pack_id}", job.name), share)


def _select(base: Elementwise, jobs: _Jobs, workers: int) -> dict[int, TensorJob]:
    """Find the elements with the largest scores."""
    buffers = Buffers()
    chosen = {
        number: job for number, job in jobs.items() if _blended(job).method.score and _blended(job).settings.options["select_topk"] < 1
    }
    tensors = [Magnitudes(chunk_count(job.common), _scores(base, job, buffers), _top(job)) for job in chosen.values()]
    cuts = find_cuts(tensors, workers)
    return {number: _with(job, replace(_blended(job), selected=cut)) for (number, job), (cut,) in zip(chosen.items(), cuts, strict=True)}


def _top(job: TensorJob) -> Callable[[int], Sequence[int]]:
    share = _blended(job).settings.options["select_topk"]
    return lambda nonzero: (int(nonzero * share),)


def _gather(base: Elementwise, jobs: _Jobs, workers: int) -> dict[int, TensorJob]:
    """Add up what the formulas measure, chunk by chunk."""
    buffers = Buffers()
    chosen = {number: job for number, job in jobs.items() if _blended(job).method.measure is not None}

    def work(task: tuple[int, int]) -> tuple[int, NDArray[np.float64]]:
        term = _blended(jobs[task[0]])
        assert term.method.measure is not None
        return task[0], term.method.measure(*_parts(base, jobs[task[0]], task[1], buffers), term.settings)

    tasks = ((number, chunk) for number, job in chosen.items() for chunk in range(chunk_count(job.common)))
    out = {}
    with closing(ordered_map(work, tasks, workers)) as results:
        for number, group in groupby(results, key=lambda result: result[0]):
            total = reduce(add, (part for _, part in group))
            term = _blended(jobs[number])
            out[number] = _with(jobs[number], replace(term, settings=replace(term.settings, statistic=total)))
    return out


def _blended(job: TensorJob) -> BlendedTerm:
    term = blended(job)
    assert term is not None
    return term


def _with(job: TensorJob, term: BlendedTerm) -> TensorJob:
    return replace(job, terms=(term,))


def _parts(base: Elementwise, job: TensorJob, chunk: int, buffers: Buffers) -> tuple[int, Parts]:
    """Return the length of a chunk and what enters the formula there."""
    assert job.base is not None
    elements = _elements(base, job, chunk)
    return len(elements), _blended(job).kept(chunk, elements, job.base.dtype, buffers.scratch(len(elements)))


def _scores(base: Elementwise, job: TensorJob, buffers: Buffers) -> Callable[[int], NDArray[np.float32]]:
    score = _blended(job).method.score
    assert score is not None
    return lambda chunk: score(*_parts(base, job, chunk, buffers))[1]


def _reader(base: Elementwise, job: TensorJob, place: int, buffers: Buffers) -> Callable[[int], NDArray[np.float32]]:
    assert job.base is not None
    source = job.base.dtype

    def read(chunk: int) -> NDArray[np.float32]:
        elements = _elements(base, job, chunk)
        return _blended(job).kept_by(place, chunk, elements, source, buffers.scratch(len(elements)))[1]

    return read


def _elements(base: Elementwise, job: TensorJob, chunk: int) -> Elements:
    """Return the base's elements of a chunk, or as many zeros where no term looks at them."""
    assert job.base is not None
    start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, job.common)
    if any(isinstance(term, StoredTerm) for share in _blended(job).by_pack for term in share):
        return base.read(job.base.name, start, stop)
    return np.zeros(stop - start, job.base.dtype.storage)
