"""Merging that is more than adding: the differences of the packs become one by a formula, chunk by chunk.

A `BlendedTerm` stands where the packs' own terms would: the engine adds it to the base like any other. What a formula has to know of a
whole tensor (a threshold, a norm) is measured before by `deltapack.merging.measuring`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import TensorInfo
from deltapack.composing.compose import Blend
from deltapack.composing.tensor_job import FromBase, OwnTerm, PackTerm, Scratch, TensorJob, TermSource
from deltapack.dtypes import DType
from deltapack.errors import RecipeError
from deltapack.format.digest import TILES_PER_CHUNK
from deltapack.kernels.layout import Elements, Sparse
from deltapack.merging.methods.linear import linear
from deltapack.merging.methods.settings import Settings
from deltapack.merging.methods.table import MergeMethod
from deltapack.merging.recipe import Layers, MergeRecipe
from deltapack.sparsify.dare import ALL_KEPT
from deltapack.sparsify.ranking import Cut, places_in_cut
from deltapack.sparsify.table import method_of

__all__ = [
    "Blended",
    "BlendedTerm",
    "KeepLargest",
    "KeepMiddle",
    "KeepRandom",
    "Wanted",
    "blend_with",
    "blended",
    "drop_rate_by_chance",
    "kept_at_most",
]


class Thinning(Protocol):
    """How `density` drops some of what a pack keeps."""

    def apply(self, chunk: int, kept: Sparse) -> Sparse:
        """Return what is left of a chunk."""


@dataclass(frozen=True)
class KeepLargest:
    """Trim by magnitude: keep the largest."""

    cut: Cut

    def apply(self, chunk: int, kept: Sparse) -> Sparse:
        """Return what is left of a chunk."""
        return _take(places_in_cut(chunk, kept[1], self.cut), kept)


@dataclass(frozen=True)
class KeepMiddle:
    """Trim by magnitude without outliers: of the largest, drop the very largest."""

    cut: Cut
    outliers: Cut

    def apply(self, chunk: int, kept: Sparse) -> Sparse:
        """Return what is left of a chunk."""
        return _take(places_in_cut(chunk, kept[1], self.cut, self.outliers), kept)


@dataclass(frozen=True)
class KeepRandom:
    """Drop at random and rescale: `share` of the kept elements stay."""

    key: int
    share: float

    def apply(self, chunk: int, kept: Sparse) -> Sparse:
        """Return what is left of a chunk."""
        length = int(kept.positions[-1]) + 1 if len(kept.positions) else 0
        samples = kernels.active().element_samples(self.key, chunk * TILES_PER_CHUNK, length)
        left = _take(samples[kept.positions] < np.uint64(round(self.share * ALL_KEPT)), kept)
        return Sparse(left.positions, left.values * np.float32(1 / self.share))


def _take(places: NDArray[np.uint32] | NDArray[np.bool_], kept: Sparse) -> Sparse:
    return Sparse(kept.positions[places], kept.values[places])


@dataclass(frozen=True)
class BlendedTerm:
    """What a merge method adds to a tensor.

    Attributes:
        method: The merge method.
        settings: What its formula knows of the tensor.
        by_pack: The terms of each pack, unweighted, in pack order; none where a pack leaves the tensor unchanged.
        packs: The packs' numbers.
        thinned: How each pack is thinned out, if it is.
        selected: The elements that the method selects by their score, if it does.
    """

    method: MergeMethod
    settings: Settings
    by_pack: tuple[tuple[OwnTerm, ...], ...]
    packs: tuple[int, ...]
    thinned: tuple[Thinning | None, ...]
    selected: Cut | None = None

    def chunk(self, number: int, base: Elements, source: DType, scratch: Scratch) -> Sparse:
        """Compute a chunk."""
        return kernels.active().blend(len(base), self.kept(number, base, source, scratch), self.method.formula(self.settings))

    def add_to(self, number: int, elements: Elements, dtype: DType, scratch: Scratch) -> None:
        """Compute a chunk and add it to elements in place."""
        kept = self.kept(number, elements, dtype, scratch)
        kernels.active().add_blended(elements, dtype, kept, self.method.formula(self.settings))

    def kept(self, number: int, base: Elements, source: DType, scratch: Scratch) -> list[Sparse]:
        """Return what enters the formula of a chunk: what each pack keeps, thinned out, and of that what is selected."""
        shares = [self.kept_by(place, number, base, source, scratch) for place in range(len(self.thinned))]
        kept = [share if thinning is None else thinning.apply(number, share) for share, thinning in zip(shares, self.thinned, strict=True)]
        if self.selected is None or self.method.score is None:
            return kept
        positions, scores = self.method.score(len(base), kept)
        selected = np.zeros(len(base), np.bool_)
        selected[positions[places_in_cut(number, scores, self.selected)]] = True
        return [_take(selected[part.positions], part) for part in kept]

    def density(self, numel: int) -> float:
        """Return about what share of a tensor's elements any pack keeps, if their masks are independent."""
        dropped = 1.0
        for terms in self.by_pack:
            dropped *= 1 - kept_at_most(terms, numel) / max(1, numel)
        return 1 - dropped

    def kept_by(self, place: int, number: int, base: Elements, source: DType, scratch: Scratch) -> Sparse:
        """Return what one pack keeps of a chunk, before it is thinned out."""
        terms = [term.chunk(number, base, source, scratch) for term in self.by_pack[place]]
        if len(terms) == 1:
            return terms[0]
        return linear(len(base), terms) if terms else Sparse(np.zeros(0, np.uint32), np.zeros(0, np.float32))


def blend_with(recipe: MergeRecipe, layers: Layers, count: int, method: MergeMethod | None = None) -> Blend:
    """Return a function that makes a blended term of what the packs have for a tensor, by their number, unweighted.

    Args:
        recipe: The recipe, spread over the packs.
        layers: The layers of the base.
        count: Number of packs.
        method: Another method than the recipe's, with its weights.
    """
    method = method or recipe.formula

    def blend(tensor: TensorInfo, terms: Mapping[int, tuple[OwnTerm, ...]]) -> tuple[TermSource, ...]:
        packs = tuple(terms)
        depth = layers.depth(tensor.name)
        all_weights, all_densities = (at(tensor.name, depth, count) for at in (recipe.weights_at, recipe.densities_at))
        weights = np.array([all_weights[pack] for pack in packs], np.float32)
        parts = tuple(terms.values())
        densities = np.array([_chance(method, tensor, part) for part in parts]) if method.needs_chance else np.zeros(0)
        settings = Settings(weights, recipe.options, densities=densities)
        wanted = tuple(Wanted(all_densities[pack]) if all_densities[pack] < 1 else None for pack in packs)
        return (BlendedTerm(method, settings, parts, packs, wanted),)

    return blend


@dataclass(frozen=True)
class Wanted:
    """A thinning that was asked for, until `deltapack.merging.measuring` knows how to do it."""

    density: float

    def apply(self, chunk: int, kept: Sparse) -> Sparse:
        """Fail: the elements to keep are not known yet."""
        raise AssertionError("the composition was not measured")


def _chance(method: MergeMethod, tensor: TensorInfo, terms: Sequence[OwnTerm]) -> float:
    """Return what share of a tensor a pack keeps by chance.

    Raises:
        RecipeError: Its mask depends on the data.
    """
    rate = drop_rate_by_chance(terms)
    if rate is None:
        raise RecipeError(
            f"{method.name} needs packs that keep everything or drop at random",
            path=next(term.reader.path for term in terms if isinstance(term, PackTerm)),
            tensor=tensor.name,
            hint="Its cosines can be corrected for random masks only. Use --method sce or linear, or compress with --sparsify dare.",
        )
    return 1 - rate


def drop_rate_by_chance(terms: Sequence[OwnTerm]) -> float | None:
    """Return the rate at which a pack dropped from a tensor at random; `None` where its mask depends on the data."""
    out = 0.0
    for term in terms:
        if not isinstance(term, PackTerm) or term.term.index_codec.kept == "all":
            continue
        if len(terms) > 1 or not _drops_at_random(term):
            return None
        if term.term.index_codec.kept == "random":
            out = 1 - term.term.keep / ALL_KEPT
        elif (numel := term.blob.layout.numel) > 0:  # a tensor without elements has had none to drop
            out = 1 - term.term.nnz / numel
    return out


def _drops_at_random(term: PackTerm) -> bool:
    recipe, method = term.reader.index.recipe, method_of(term.reader.index.recipe)
    overrides = recipe.get("overrides", [])
    plain = isinstance(overrides, list) and not any(isinstance(override, dict) and "sparsify" in override for override in overrides)
    return term.term.index_codec.kept == "random" or (method is not None and method.random and plain)


@dataclass(frozen=True)
class Blended:
    """A job whose only term is a blended one.

    Attributes:
        job: The job, with this term or an earlier form of it.
        source: What it starts from.
        term: The term.
    """

    job: TensorJob
    source: FromBase
    term: BlendedTerm

    @property
    def common(self) -> int:
        """Number of leading elements that it is added to."""
        return self.job.common

    def made(self) -> TensorJob:
        """Return the job with the term."""
        return self.with_terms((self.term,))

    def with_terms(self, terms: tuple[TermSource, ...]) -> TensorJob:
        """Return the job with other terms."""
        return replace(self.job, source=replace(self.source, terms=terms))


def blended(job: TensorJob) -> Blended | None:
    """Return a job with its blended term, if it has one."""
    source, term = job.source, job.terms[0] if len(job.terms) == 1 else None
    return Blended(job, source, term) if isinstance(source, FromBase) and isinstance(term, BlendedTerm) else None


def kept_at_most(terms: Sequence[OwnTerm], numel: int) -> int:
    """Return how many elements of a tensor a pack keeps, or an upper bound if it has several terms."""
    return min(numel, sum(term.term.nnz if isinstance(term, PackTerm) else numel for term in terms))
