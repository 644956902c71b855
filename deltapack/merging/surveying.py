"""How packs relate: overlap, conflicts of signs, cosines, norms, layer by layer, from the packs alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltapack.merging.advice import changed_and_alone
from deltapack.merging.blending import BlendedTerm, blended, drop_rate_by_chance
from deltapack.merging.measuring import measure
from deltapack.merging.methods.linear import weighted_sum
from deltapack.merging.methods.model_stock import products
from deltapack.merging.methods.settings import Parts, Settings, count_signs
from deltapack.merging.methods.table import MergeMethod
from deltapack.merging.planning import MergePlan, plan_merge
from deltapack.merging.recipe import MergeRecipe, layer_number
from deltapack.merging.request import MergeChoices, MergeRequest
from deltapack.parallel import resolve_workers
from deltapack.reports import LayerRow, SurveyReport
from deltapack.sources.inputs import guarded

__all__ = ["survey", "survey_merge"]

_TOO_MUCH = 2.0
"""How many times the overlap of independent masks is too much."""


@guarded
def survey_merge(
    base: str | Path,
    packs: Sequence[str | Path],
    *,
    recipe: MergeRecipe | None = None,
    prefer: str | Path | None = None,
    vocab: str | Path | None = None,
    weight_files: str | None = None,
    workers: int | None = None,
) -> SurveyReport:
    """Compare packs before they are merged. The base is read only where a pack stores a tensor whole.

    Args:
        base: The common base.
        packs: The packs.
        recipe: Its weights and densities are used; `linear` with weights of 1 unless given.
        prefer: As for `merge`.
        vocab: As for `merge`.
        weight_files: As for `merge`.
        workers: Threads; every core unless given.

    Raises:
        BaseMismatchError: A pack was made from another base.
        FormatError: A pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and neither `prefer` nor `vocab` decides.
        RecipeError: The recipe does not fit the packs.
    """
    with ExitStack() as stack:
        request = MergeRequest(base, packs, recipe or MergeRecipe(), MergeChoices(prefer, vocab=vocab), weight_files)
        plan = plan_merge(stack, request, workers=resolve_workers(workers))
        return survey(plan, resolve_workers(workers))


def survey(plan: MergePlan, workers: int) -> SurveyReport:
    """Compare the packs of a plan."""
    count = len(plan.packs)
    counting = replace(_COUNTING, trim=plan.recipe.formula.trim)
    composition = measure(plan.base, plan.side_by_side(counting), workers)
    layers: dict[str, _Sums] = {}
    for job in composition.jobs:
        found = blended(job)
        if found is None or not found.common or not found.term.settings.statistic.size:
            continue
        number = layer_number(found.source.base.name)
        name = "outside of the layers" if number is None else f"layer {number}"
        sums = _sums_of(found.term, found.common, count)
        layers[name] = sums if name not in layers else layers[name] + sums
    ordered = sorted(layers.items(), key=lambda item: (not item[0].startswith("layer"), len(item[0]), item[0]))
    rows = tuple(sums.row(name) for name, sums in ordered)
    total = sum(layers.values(), _Sums.nothing(count))
    return SurveyReport(tuple(map(str, plan.paths)), rows, total.row("all"), tuple(_warnings(total)))


def _count(length: int, parts: Parts, settings: Settings) -> NDArray[np.float64]:
    """Return changed elements, those that several packs change, those of them with both signs; then changes and products of the packs."""
    positive, negative = count_signs(length, parts)
    changed = positive + negative
    counts = [np.count_nonzero(changed), np.count_nonzero(changed > 1), np.count_nonzero((positive > 0) & (negative > 0))]
    own = [np.count_nonzero(values) for _, values in parts]
    return np.concatenate([counts, own, products(length, parts, settings).reshape(-1)]).astype(np.float64)


_COUNTING = MergeMethod("survey", "", weighted_sum, measure=_count)


@dataclass(frozen=True)
class _Sums:
    """What was counted over some tensors.

    Attributes:
        elements: Elements of the tensors.
        changed: Elements that any pack changes.
        shared: Elements that several packs change.
        conflicts: Shared elements with both signs.
        expected: Shared elements if the masks were independent; NaN where a mask is not random.
        products: `[packs, packs]` scalar products of the differences.
        squares: `[packs]` squared norms, corrected for what was dropped at random.
        weighted: `[packs]` squared norms of the weighted differences.
    """

    elements: float
    changed: float
    shared: float
    conflicts: float
    expected: float
    products: NDArray[np.float64]
    squares: NDArray[np.float64]
    weighted: NDArray[np.float64]

    @classmethod
    def nothing(cls, packs: int) -> _Sums:
        """Return the sums over no tensor."""
        return cls(0, 0, 0, 0, 0, np.zeros((packs, packs)), np.zeros(packs), np.zeros(packs))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def row(self, name: str) -> LayerRow:
        """Return the row of the table."""
        pairs = list(combinations(range(len(self.squares)), 2))
        norms = self.squares**0.5
        cosines = [self.products[i, j] / (norms[i] * norms[j]) for i, j in pairs if norms[i] and norms[j]]
        total = self.weighted.sum()
        return LayerRow(
            name,
            int(self.elements),
            int(self.changed),
            self.shared / self.changed if self.changed else 0.0,
            self.conflicts / self.shared if self.shared else 0.0,
            max(-1.0, min(1.0, float(sum(cosines)) / len(cosines))) if cosines else None,
            tuple(map(float, norms)),
            tuple(map(float, self.weighted / total)) if total else (0.0,) * len(norms),
        )


def _sums_of(term: BlendedTerm, common: int, packs: int) -> _Sums:
    """Return the sums of one tensor of so many common elements, with the packs that have it at their places."""
    places, count = list(term.packs), len(term.packs)
    changed, shared, conflicts, *rest = term.settings.statistic.tolist()
    kept, gram = np.array(rest[:count]), np.array(rest[count:]).reshape(count, count)
    chances = [drop_rate_by_chance(terms) for terms in term.by_pack]
    density = np.array([1.0 if rate is None or thinned else 1 - rate for rate, thinned in zip(chances, term.thinned, strict=True)])
    out = _Sums.nothing(packs)
    out.products[np.ix_(places, places)] = gram
    out.squares[places] = gram.diagonal() * density
    out.weighted[places] = gram.diagonal() * term.settings.weights.astype(np.float64) ** 2
    random = all(rate is not None for rate in chances)
    some, one = changed_and_alone((kept / common).tolist())
    expected = max(0.0, some - one) * common if random else float("nan")
    return _Sums(common, changed, shared, conflicts, expected, out.products, out.squares, out.weighted)


def _warnings(total: _Sums) -> list[str]:
    spread = max(total.expected, 1.0) ** 0.5
    if not total.shared > _TOO_MUCH * total.expected + 10 * spread:  # false for NaN, too
        return []
    found, expected = (100 * count / total.changed for count in (total.shared, total.expected))
    return [
        f"{found:.1f} % of the changed elements are changed by several packs, where independent masks would share {expected:.1f} %: "
        "the masks coincide (same seed and fine-tune), and merging after dropping works by their independence"
    ]
