"""What `merge` is asked to do, checked once, and what that means for each tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltapack.checking import as_number
from deltapack.errors import RecipeError, did_you_mean
from deltapack.merging.methods.linear import effective_weights
from deltapack.merging.methods.table import MergeMethod, find_method
from deltapack.patterns import check_pattern

__all__ = ["Layers", "MergeRecipe", "Rule", "Schedule", "constant"]

_LAYER = re.compile(r"(?:^|[./])(?:layers?|h|blocks?)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Layers:
    """How deep a tensor lies in the model: its layer's number over the last one's, as its name tells; 0 outside of the layers.

    Attributes:
        counts: The number of layers of each sub-folder, a model of its own; of the checkpoint itself for `""`.
    """

    counts: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Layers:
        """Count the layers that the names of a model's tensors mention."""
        counts: dict[str, int] = {}
        for name in names:
            number, folder = layer_number(name), name.rpartition("/")[0]
            if number is not None:
                counts[folder] = max(counts.get(folder, 0), number + 1)
        return cls(counts)

    def depth(self, name: str) -> float:
        """Return a number from 0 (first layer) to 1 (last); a model of one layer is at 1, as in mergekit."""
        number = layer_number(name)
        if number is None:
            return 0.0
        count = self.counts.get(name.rpartition("/")[0], 0)
        return number / (count - 1) if count > 1 else 1.0


def layer_number(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; `None` outside of the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found is not None and len(found[1]) < 9 else None


@dataclass(frozen=True)
class Rule:
    """Values for tensors whose whole name matches `pattern` (`None`: all): one, or several that are interpolated over the layers."""

    values: tuple[float, ...]
    pattern: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, (tuple, list)):
            raise RecipeError("the values of a rule are not a tuple of numbers", found=repr(self.values)[:60])
        for value in self.values:
            as_number("a value", value)
        if not self.values or not all(math.isfinite(value) and abs(value) < 3e38 for value in self.values):
            raise RecipeError("a value is not a finite f32", found=list(self.values))
        check_pattern(self.pattern)

    def at(self, depth: float) -> float:
        """Return the value at a depth between 0 and 1, interpolated linearly."""
        place = depth * (len(self.values) - 1)
        first = min(int(place), len(self.values) - 1)
        second = min(first + 1, len(self.values) - 1)
        share = place - first
        return (1 - share) * self.values[first] + share * self.values[second]


@dataclass(frozen=True)
class Schedule:
    """A number that may depend on the tensor: the last rule that matches its name decides."""

    rules: tuple[Rule, ...]

    def at(self, name: str, depth: float) -> float | None:
        """Return the value for a tensor, `None` where no rule matches."""
        for rule in reversed(self.rules):
            if rule.pattern is None or re.fullmatch(rule.pattern, name):
                return rule.at(depth)
        return None

    @property
    def single(self) -> float | None:
        """The value, if it is the same for all tensors: 1 where no rule says another."""
        if not self.rules:
            return 1.0
        last = self.rules[-1]
        return last.values[0] if last.pattern is None and len(set(last.values)) == 1 else None

    def to_json(self) -> Any:
        """Return the schedule as a pack states it: strings only."""
        if self.single is not None:
            return repr(float(self.single))
        return [
            ({} if rule.pattern is None else {"pattern": rule.pattern}) | {"values": [repr(float(value)) for value in rule.values]}
            for rule in self.rules
        ]


def constant(value: float) -> Schedule:
    """Return the schedule that always gives `value`."""
    return Schedule((Rule((float(value),)),))


@dataclass(frozen=True)
class MergeRecipe:
    """How to merge.

    Attributes:
        method: Name of a merge method.
        weights: The weight of each pack, or one for all; 1 unless given, or where no rule matches.
        semantics: Whose formula, where tools differ: `"mergekit"`, `"paper"` or `"peft"`; mergekit's unless given.
        densities: What share of the tensor's elements each pack may keep, in (0, 1], or one for all; everything unless given. Only kept
            elements are dropped, and a pack that keeps less already is left as it is.
        parameters: The method's own, such as `lambda` and `normalize`.

    Raises:
        RecipeError: A method, semantics or parameter is unknown or out of range.
    """

    method: str = "linear"
    weights: tuple[Schedule, ...] = ()
    semantics: str | None = None
    densities: tuple[Schedule, ...] = ()
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        method = self.formula
        given = [*(["weight"] if self.weights else []), *(["density"] if self.densities else []), *self.parameters]
        for name in given:
            if name not in method.parameters:
                known = ", ".join(method.parameters) or "none"
                hint = _HINTS.get(name) or did_you_mean(name, method.parameters)
                raise RecipeError(f"{method.name} has no parameter {name}", expected=f"one of: {known}", found=name, hint=hint)
        for name, value in self.parameters.items():
            if name not in method.defaults:
                raise RecipeError(f"{name} is of each pack, not of the method", found=name, hint=f"Give it with --{name}.")
            _check_option(name, value)
        for schedule in self.densities:
            if not all(0 < value <= 1 for rule in schedule.rules for value in rule.values):
                raise RecipeError("density is out of range", expected="above 0, at most 1", found=schedule.to_json())

    def _check_types(self) -> None:
        for what, name in (("method", self.method), ("semantics", self.semantics)):
            if not isinstance(name, str) and (name is not None or what == "method"):
                raise RecipeError(f"{what} is not a name", found=repr(name)[:60])
        for what, schedules in (("weights", self.weights), ("densities", self.densities)):
            if not isinstance(schedules, (tuple, list)) or not all(isinstance(schedule, Schedule) for schedule in schedules):
                hint = "Plain numbers go to deltapack.merge(..., weights=, density=), which makes schedules of them."
                raise RecipeError(f"{what} is not a tuple of schedules", found=repr(schedules)[:60], hint=hint)
        if not isinstance(self.parameters, Mapping) or not all(isinstance(name, str) for name in self.parameters):
            raise RecipeError("parameters is not a mapping of names to numbers", found=repr(self.parameters)[:60])

    @property
    def formula(self) -> MergeMethod:
        """The merge method."""
        return find_method(self.method, self.semantics)

    @property
    def options(self) -> dict[str, float]:
        """All parameters of the method, given or not."""
        return {name: float(value) for name, value in {**self.formula.defaults, **self.parameters}.items()}

    def for_packs(self, count: int) -> MergeRecipe:
        """Return the recipe with one weight and one density per pack.

        Raises:
            RecipeError: Their number is wrong, or the packs are too few for the method.
        """
        method = self.formula
        if count < method.least:
            raise RecipeError(f"{method.name} needs more packs", expected=f"at least {method.least}", found=count)
        weights = _spread("weights", self.weights, count) or ()
        densities = _spread("densities", self.densities, count) or ()
        return MergeRecipe(self.method, weights, self.semantics, densities, self.parameters)

    def given_weights_at(self, name: str, depth: float, count: int) -> list[float]:
        """Return the weights of all packs for a tensor, as they were given; 1 where they were not."""
        found = [schedule.at(name, depth) for schedule in self.weights] or [None] * count
        return [1.0 if weight is None else weight for weight in found]

    def weights_at(self, name: str, depth: float, count: int) -> list[float]:
        """Return the weights of all packs for a tensor; of a linear method, with its divisor and lambda in them."""
        weights = self.given_weights_at(name, depth, count)
        if not self.formula.is_linear:
            return weights
        options = self.options
        normalize = bool(options.get("normalize", 1))  # `average` divides by the number of packs
        return effective_weights(weights, normalize=normalize, scale=options["lambda"])

    def densities_at(self, name: str, depth: float, count: int) -> list[float]:
        """Return the share of elements that each pack may keep of a tensor."""
        found = [schedule.at(name, depth) for schedule in self.densities] or [None] * count
        return [1.0 if density is None else density for density in found]

    def to_json(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return the recipe as a pack states it, with the ids of its packs: strings only."""
        method, packs = self.formula, []
        for number, pack_id in enumerate(ids):
            row: dict[str, Any] = {"id": pack_id}
            if method.weighted:
                row["weight"] = self.weights[number].to_json() if self.weights else "1.0"
            if self.densities:
                row["density"] = self.densities[number].to_json()
            packs.append(row)
        options = {key: repr(value) for key, value in self.options.items() if value != _NEUTRAL.get(key)}
        out = {"method": method.name, "semantics": self.semantics, "parameters": options, "packs": packs}
        return {key: value for key, value in out.items() if value not in (None, {})}


_NEUTRAL = {"lambda": 1.0, "normalize": 0.0}
_HINTS = {
    "density": "The packs' own sparsifier has thinned them out: compress with another --drop-rate or --sparsify.",
    "epsilon": "It belongs to the sparsifier: compress with --sparsify della --epsilon.",
    "gamma": "It belongs to the sparsifier: compress with --sparsify breadcrumbs --gamma.",
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "normalize": (0, 1),
    "gamma": (0, 1),
    "select_topk": (0, 1),
    "epsilon": (0, 3e38),
    "alpha": (0, 3e38),
    "r": (0, 3e38),
    "lambda": (-3e38, 3e38),
}


def _check_option(name: str, value: object) -> None:
    low, high = _RANGES.get(name, (-3e38, 3e38))
    if not isinstance(value, (int, float)) or not low <= value <= high:  # also NaN, infinities, integers beyond f64
        raise RecipeError(f"{name} is out of range", expected=f"a number from {low:g} to {high:g}", found=value)
    if name == "normalize" and value not in (0, 1):
        raise RecipeError("normalize is a yes or no", expected="true or false", found=value)


def _spread(what: str, schedules: tuple[Schedule, ...], count: int) -> tuple[Schedule, ...]:
    if len(schedules) in (0, count):
        return schedules
    if len(schedules) == 1:
        return schedules * count
    raise RecipeError(f"the number of {what} is wrong", expected=f"1 or {count}" if count > 1 else 1, found=len(schedules))
