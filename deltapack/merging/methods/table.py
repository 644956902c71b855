"""The merge methods as data: what each computes, which parameters it knows, what it must measure first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import RecipeError, did_you_mean
from deltapack.kernels.formulas import Formula
from deltapack.kernels.layout import Sparse
from deltapack.merging.methods import model_stock, ram, sce, ties, ties_paper, ties_peft
from deltapack.merging.methods.linear import weighted_sum
from deltapack.merging.methods.settings import Parts, Settings

__all__ = ["METHODS", "REFUSED", "SEMANTICS", "MergeMethod", "find_method"]

Measure = Callable[[int, Parts, Settings], NDArray[np.float64]]
"""Takes the length of a chunk and what the packs keep of it; returns numbers that are added up over the chunks, in order."""
Score = Callable[[int, Parts], Sparse]
"""Takes the same and returns the scores of the elements that any pack keeps."""

SEMANTICS = ("mergekit", "paper", "peft")
"""Whose formula, where tools differ."""


@dataclass(frozen=True)
class MergeMethod:
    """One way to merge.

    Attributes:
        name: Its name.
        text: The formula in one line, for people.
        formula: Returns the formula with the numbers of a tensor.
        defaults: Its own parameters and their values unless given; truth is 1.0 and 0.0.
        weighted: Whether it takes a weight for each pack.
        trim: How `density` thins out what the packs keep: `"magnitude"`, `"random"`, `"outliers"`; `None`: it takes no density.
        measure: What has to be known of the whole tensor before.
        measured: What that is, in words.
        score: What elements are selected by, if they are: the `select_topk` share with the largest score.
        made_by: The sparsifier that the packs should have been made with, if the name of the method says so.
        least: The least number of packs.
        by_agreeing: Whether the sum is divided, element by element, by what the packs that agree there have.
        needs_chance: Whether the packs' masks must be random, or keep everything.
    """

    name: str
    text: str
    formula: Callable[[Settings], Formula]
    defaults: Mapping[str, float] = field(default_factory=dict)
    weighted: bool = True
    trim: str | None = None
    measure: Measure | None = None
    measured: str = ""
    score: Score | None = None
    made_by: str | None = None
    least: int = 1
    by_agreeing: bool = False
    needs_chance: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the result is a weighted sum of the packs' terms, so that weights can be folded into their factors."""
        return self.formula is weighted_sum

    @property
    def adds_up(self) -> bool:
        """Whether it is that too once the weights were measured."""
        return self.is_linear or self.formula is model_stock.model_stock

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters."""
        common = (["weight"] if self.weighted else []) + (["density"] if self.trim else [])
        return (*common, *sorted(self.defaults))


_SUM = MergeMethod("linear", "base + lambda * sum(weight * delta)", weighted_sum, {"normalize": 0, "lambda": 1})
_TIES = MergeMethod(
    "ties",
    "base + lambda * sum(weight * delta where its sign is that of sum(weight * delta))",
    ties.election,
    {"normalize": 0, "lambda": 1},
    trim="magnitude",
)
_TIES_PAPER = MergeMethod(
    "ties",
    "base + lambda * mean(delta where its sign is that of sum(delta))",
    ties_paper.election,
    {"lambda": 1},
    weighted=False,
    trim="magnitude",
    measure=ties_paper.majority,
    measured="sums that are positive, less those that are negative",
    by_agreeing=True,
)
_TIES_PEFT = MergeMethod(
    "ties",
    "base + sum(weight * delta where its sign is that of sum(delta)) / number of such",
    ties_peft.election,
    trim="magnitude",
    by_agreeing=True,
)
_GAMMA = {"normalize": 0, "lambda": 1, "gamma": 0.01}


def _everywhere(method: MergeMethod) -> Mapping[str, MergeMethod]:
    return dict.fromkeys(SEMANTICS, method)


def _mergekit(method: MergeMethod) -> Mapping[str, MergeMethod]:
    return {"mergekit": method}


METHODS: Mapping[str, Mapping[str, MergeMethod]] = {
    "linear": _everywhere(_SUM),
    "average": _everywhere(replace(_SUM, name="average", text="base + lambda * mean(delta)", weighted=False, defaults={"lambda": 1})),
    "ties": {
        "mergekit": replace(_TIES, defaults={"normalize": 1, "lambda": 1}),
        "paper": _TIES_PAPER,
        "peft": _TIES_PEFT,
    },
    "dare_linear": _everywhere(replace(_SUM, name="dare_linear", trim="random", made_by="dare")),
    "dare_ties": {
        "mergekit": replace(_TIES, name="dare_ties", trim="random", made_by="dare"),
        "paper": replace(_TIES_PAPER, name="dare_ties", trim="random", made_by="dare"),
        "peft": replace(_TIES_PEFT, name="dare_ties", trim="random", made_by="dare"),
    },
    "della": _mergekit(replace(_TIES, name="della", defaults={"normalize": 1, "lambda": 1}, trim=None, made_by="della")),
    "della_linear": _mergekit(replace(_SUM, name="della_linear", made_by="della")),
    "breadcrumbs": _mergekit(replace(_SUM, name="breadcrumbs", defaults=_GAMMA, trim="outliers", made_by="breadcrumbs")),
    "breadcrumbs_ties": _mergekit(replace(_TIES, name="breadcrumbs_ties", defaults=_GAMMA, trim="outliers", made_by="breadcrumbs")),
    "sce": _mergekit(
        MergeMethod(
            "sce",
            "base + sum(g * delta where its sign is that of sum(delta)) / sum(g there); g: share of the pack in sum(delta^2)",
            sce.election,
            {"select_topk": 1},
            weighted=False,
            measure=sce.energies,
            measured="sum of delta^2 of each pack",
            score=sce.spread,
            by_agreeing=True,
        )
    ),
    "ram": _mergekit(
        MergeMethod(
            "ram", "base + delta of the only pack, or mean(delta) of several", ram.ram, {"epsilon": 1e-5}, weighted=False, by_agreeing=True
        )
    ),
    "ramplus_tl": _mergekit(
        MergeMethod(
            "ramplus_tl",
            "base + (1 + r * min(alpha, shared / unique)) * delta of the only pack, or mean(delta) of several",
            ram.ramplus,
            {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
            weighted=False,
            measure=ram.shared_and_unique,
            measured="elements that each pack shares; that it alone keeps",
            by_agreeing=True,
        )
    ),
    "model_stock": _mergekit(
        MergeMethod(
            "model_stock",
            "base + t * mean(delta); t = K * cos / (1 + (K - 1) * cos)",
            model_stock.model_stock,
            weighted=False,
            measure=model_stock.products,
            measured="scalar products of the packs",
            least=2,
            needs_chance=True,
        )
    ),
}
"""Methods by name and semantics."""
ALIASES = {"task_arithmetic": "linear", "ramplus": "ramplus_tl"}

_DENSE = (
    "interpolates between whole models along a curve, which depends on every weight of each; a pack has only the difference that was kept"
)
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("slerp", "nuslerp", "multislerp", "karcher"), _DENSE),
    "nearswap": "compares each weight of one model with another's; a pack has only the differences that were kept",
    "arcee_fusion": "picks the weights whose difference matters most from two whole models",
    "passthrough": "copies layers of whole models",
    "fisher": "needs the models' gradients on data",
    "regmean": "needs the models' activations on data",
}
"""Methods that people know and that packs cannot do, and why."""


def find_method(name: str, semantics: str | None = None) -> MergeMethod:
    """Return the method of this name as the tool of this name computes it.

    Raises:
        RecipeError: There is none.
    """
    name = ALIASES.get(name, name)
    if name in REFUSED:
        hint = "Use ties or sce on the packs, or restore the models with `deltapack apply` and merge those with mergekit."
        raise RecipeError(f"merge method {name!r} {REFUSED[name]}", hint=hint)
    if name not in METHODS:
        raise RecipeError("merge method is unknown", expected="one of " + ", ".join(METHODS), found=name, hint=did_you_mean(name, METHODS))
    variants = METHODS[name]
    wanted = semantics or "mergekit"
    if wanted not in variants:
        known = ", ".join(variants)
        raise RecipeError(f"semantics of {name} is unknown", expected=f"one of {known}", found=wanted, hint=did_you_mean(wanted, variants))
    return variants[wanted]
