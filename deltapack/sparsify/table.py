"""The sparsifiers as data: what each keeps, which options it knows, how it is made ready for a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deltapack.sparsify import breadcrumbs, dare, della, magnitude
from deltapack.sparsify.kept import Sparsifier, TensorDelta

__all__ = ["SPARSIFIERS", "SparsifyMethod", "SparsifyOption", "method_of"]


@dataclass(frozen=True)
class SparsifyOption:
    """A number that one sparsifier takes: a field of `deltapack.Recipe` and an option of `deltapack compress`.

    Attributes:
        name: Its name.
        text: What it does, for people.
        metavar: How the command line's help calls its value.
        settle: From the density and what was given (`None`: nothing) to the number in use; `None` where there is none at this density.
            Raises `RecipeError`.
        check: Refuses what is wrong at every density, by `RecipeError`, whether or not the sparsifier is in use.
    """

    name: str
    text: str
    metavar: str
    settle: Callable[[float, Any], float | None]
    check: Callable[[float], None] | None = None


@dataclass(frozen=True)
class SparsifyMethod:
    """One way to drop.

    Attributes:
        name: Its name.
        text: What is dropped, for people.
        plan: Makes it ready for a tensor; may pass over its elements. `None`: the mask is drawn from the tensor's key and the density
            alone, so that it need not be stored (index codec `seeded`).
        options: What it takes besides the drop rate.
        rescale: How it makes up for what is dropped, unless the user names a factor: all values by one over the share kept (`"rate"`),
            each by one over its own probability (`"element"`), or not at all (`"none"`).
        by_chance: Whether it may keep elements of any size, so that a few at fixed places are like those that it keeps.
        risky: A difference of which magnitude makes dropping 90 % of the elements risky.
        hopeless: One that makes it fail.
    """

    name: str
    text: str
    plan: Callable[[TensorDelta], Sparsifier] | None = None
    options: tuple[SparsifyOption, ...] = ()
    rescale: Literal["rate", "element", "none"] = "none"
    by_chance: bool = False
    risky: float = math.inf
    hopeless: float = math.inf

    def __post_init__(self) -> None:
        if (self.plan is None and not self.by_chance) or self.risky > self.hopeless:
            raise ValueError(f"no such sparsifier: {self}")

    @property
    def random(self) -> bool:
        """Whether its masks are drawn from a key alone and do not depend on the data."""
        return self.plan is None

    def factor(self, keep: int) -> float:
        """Return the factor of kept values unless the user names one, an f32; `keep` is the density times 2^32."""
        return dare.rescale_factor(keep) if self.rescale == "rate" else 1.0

    def settled(self, density: float, given: Mapping[str, Any]) -> dict[str, float]:
        """Return its options as they are in use, from all that were given.

        Raises:
            RecipeError: One is out of range.
        """
        found = {option.name: option.settle(density, given[option.name]) for option in self.options}
        return {name: value for name, value in found.items() if value is not None}


_EPSILON = SparsifyOption(
    "epsilon",
    f"keep with density - E to density + E; {della.USUAL_EPSILON:g} if that fits.",
    "E",
    lambda density, given: della.epsilon_for(density, given) if density < 1 else None,
)
_GAMMA = SparsifyOption(
    "gamma",
    f"share of outliers; {breadcrumbs.USUAL_GAMMA:g} unless given.",
    "G",
    lambda density, given: breadcrumbs.USUAL_GAMMA if given is None else float(given),
    breadcrumbs.check_gamma,
)

SPARSIFIERS: Mapping[str, SparsifyMethod] = {
    row.name: row
    for row in (
        SparsifyMethod("dare", "at random", rescale="rate", by_chance=True, risky=dare.RISKY, hopeless=dare.HOPELESS),
        SparsifyMethod("magnitude", "the smallest", magnitude.plan),
        SparsifyMethod("della", "at random, the smaller the likelier", della.plan, (_EPSILON,), rescale="element", by_chance=True),
        SparsifyMethod("breadcrumbs", "the smallest and the very largest", breadcrumbs.plan, (_GAMMA,)),
    )
}
"""Sparsifiers by name."""


def method_of(recipe: Mapping[str, Any]) -> SparsifyMethod | None:
    """Return the sparsifier that a pack says it was made with; none where its recipe names no sparsifier that is known."""
    name = recipe.get("method")
    return SPARSIFIERS.get(name) if isinstance(name, str) else None
