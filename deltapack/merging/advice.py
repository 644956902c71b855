"""What a person should know before a merge: from the recipe and the packs' headers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

from deltapack.format.reader import PackReader
from deltapack.merging.planning import MergePlan
from deltapack.merging.recipe import MergeRecipe
from deltapack.packing.kinship import shortened
from deltapack.restoring.applying import changed_statistics
from deltapack.sparsify.table import method_of

__all__ = ["changed_and_alone", "shown_weights", "warnings_of"]

LARGEST_SUM_OF_WEIGHTS = 1.2
"""Above this sum merges are known to degrade (advice of mergekit's maintainers: 0 to 1.2)."""
MOSTLY = 0.5
"""Share of the changed elements whose weight `normalize` cancels, above which a warning is due."""


def shown_weights(plan: MergePlan) -> list[float | None]:
    """Return the weight of each pack, as it was given; `None` where it depends on the tensor or the method has none."""
    if not plan.recipe.formula.weighted:
        return [None] * len(plan.packs)
    return [schedule.single for schedule in plan.recipe.weights] or [1.0] * len(plan.packs)


def warnings_of(plan: MergePlan) -> list[str]:
    """Return sentences about the recipe and the packs that a person should read."""
    readers, method = [pack.reader for pack in plan.packs], plan.recipe.formula
    normalized = bool(plan.recipe.options.get("normalize"))
    out = [*_no_difference(plan.recipe), *_sum_warning(plan), *_statistics_warning(readers)]
    if (method.by_agreeing or (normalized and not method.is_linear)) and len(readers) > 1:
        out += _divisor_warning(readers, method.name, normalized=normalized)
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


def _statistics_warning(readers: Sequence[PackReader]) -> list[str]:
    """Warn where running means, variances and the like are merged as weights are, which they are not."""
    changed = list(dict.fromkeys(name for reader in readers for name in changed_statistics(reader.index)))
    if not changed:
        return []
    return [
        f"statistics are merged as weights are ({shortened(changed)}): only weights that add up to 1 average them, and with others a "
        "variance may come out negative. Measure them again on the merged model"
    ]


def _no_difference(recipe: MergeRecipe) -> list[str]:
    """Warn where the numbers of a recipe take away all that packs have."""
    options, weights = recipe.options, [schedule.single for schedule in recipe.weights]
    found = [f"{name} {value:g}" for name, value in _NOTHING_LEFT.items() if options.get(name) == value]
    found += ["a weight of 0 for every pack"] if weights and not any(weight is None or weight for weight in weights) else []
    return [f"with {' and '.join(found)} the result is the base"] if found else []


_NOTHING_LEFT = {"lambda": 0.0, "select_topk": 0.0, "gamma": 1.0}
"""Parameters with which nothing is added."""


def _sum_warning(plan: MergePlan) -> list[str]:
    """Warn where what several packs weigh together, with lambda, is too much: of the tensor where it is most."""
    recipe, count = plan.recipe, len(plan.packs)
    if count < 2 or not recipe.formula.weighted or recipe.formula.by_agreeing or recipe.options.get("normalize"):
        return []
    names = [""] if all(schedule.single is not None for schedule in recipe.weights) else plan.base.tensors
    sums = {name: sum(recipe.given_weights_at(name, plan.layers.depth(name), count)) for name in names}
    name, scale = max(sums, key=sums.__getitem__, default=""), recipe.options.get("lambda", 1.0)
    total = float(f"{scale * sums.get(name, 0.0):.6g}")  # three times 0.4 is 1.2, whatever f64 makes of it
    if total <= LARGEST_SUM_OF_WEIGHTS:
        return []
    each = {schedule.single for schedule in recipe.weights} or {1.0}
    asides = [f"{weight:g} for each of {count} packs" for weight in each if len(each) == 1 and weight is not None]
    asides += [f"times lambda {scale:g}"] if scale != 1 else []
    asides += [f"in {name}"] if name else []
    aside = f" ({', '.join(asides)})" if asides else ""
    advice = f"merges above {LARGEST_SUM_OF_WEIGHTS:g} often lose quality; try --weight with less"
    return [f"the weights add up to {total:g}{aside}: {advice}"]


def _divisor_warning(readers: Sequence[PackReader], method: str, *, normalized: bool) -> list[str]:
    """Warn where packs hardly overlap: what divides by those that agree then divides by one of them, and gives the sum of all."""
    share = _kept_by_one(readers)
    if share < MOSTLY:
        return []
    found = f"{100 * share:.0f} % of the changed elements are kept by one pack only"
    if normalized:
        return [
            f"normalize divides by the weights of the packs that agree, and {found}: there its weight has no effect. "
            "Without normalize (--no-normalize) weights mean what they say"
        ]
    made_with = [method_of(reader.index.recipe) for reader in readers]
    if not any(method is not None and method.rescale != "none" for method in made_with):
        return []  # what is kept is as large as it was
    return [
        f"{method} divides by the packs that agree, and {found}: the result is about the plain sum of their rescaled differences. "
        "Use average, or linear or dare_ties with weights that add up to about 1"
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
        some, one = changed_and_alone(shares)
        touched += sizes[name] * some
        alone += sizes[name] * one
    return alone / touched if touched else 0.0


def changed_and_alone(densities: Sequence[float]) -> tuple[float, float]:
    """Return which shares of the elements some, and exactly one, of independent masks of these densities keep."""
    dropped = [1 - density for density in densities]
    alone = sum(density * prod(dropped[:place] + dropped[place + 1 :]) for place, density in enumerate(densities))
    return 1 - prod(dropped), alone


def _mask_keys(reader: PackReader) -> set[tuple[str, int, int]]:
    return {(entry.name, term.key, term.keep) for entry in reader.index.entries for term in entry.terms if term.keep}
