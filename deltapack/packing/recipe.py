"""What `compress` is asked to do, checked once, and what that means for each tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from deltapack.checking import as_number
from deltapack.codecs.indices import DENSE
from deltapack.errors import RecipeError, did_you_mean
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.packing.budget import USUAL_QUALITY, Budget
from deltapack.packing.overrides import OF_VECTORS, SETTINGS, Override, settings_of
from deltapack.packing.roles import ROLES, SETTABLE
from deltapack.patterns import check_pattern
from deltapack.sparsify.dare import ALL_KEPT, keep_of_drop_rate
from deltapack.sparsify.table import SPARSIFIERS, SparsifyMethod

__all__ = [
    "DENSE",
    "INDEX_CHOICES",
    "OF_DARE",
    "SPARSIFY_CHOICES",
    "USUAL_FIDELITY",
    "USUAL_RATE",
    "VALUE_CHOICES",
    "Recipe",
    "TensorRecipe",
]

VALUE_CHOICES = ("auto", *VALUE_CODECS)
SPARSIFY_CHOICES: Mapping[str, SparsifyMethod] = SPARSIFIERS
INDEX_CHOICES = ("auto", *(name for name, row in INDEX_CODECS.items() if row.kept != "all"))


@dataclass(frozen=True)
class TensorRecipe:
    """How one tensor is packed.

    Attributes:
        keep: Density times 2^32.
        factor: Rescale, an f32.
        values: Value codec or `"auto"`.
        index: Index codec or `"auto"`.
        whole: Whether the tensor is kept whole instead, bit for bit.
        sparsify: Sparsifier.
        parameters: The sparsifier's own, by name.
        unbiased: Whether no factor was named, so that the sparsifier may divide what it keeps by its probability.
        role: The tensor's role, a name of `deltapack.packing.roles`.
        budgeted: Whether the recipe's budget says what becomes of it, and not what is above.
    """

    keep: int
    factor: float
    values: str
    index: str
    whole: bool = False
    sparsify: str = "dare"
    parameters: Mapping[str, float] = field(default_factory=dict)
    unbiased: bool = False
    role: str = "weight"
    budgeted: bool = False

    @property
    def method(self) -> SparsifyMethod:
        """The row of its sparsifier."""
        return SPARSIFIERS[self.sparsify]

    @property
    def density(self) -> float:
        """Share of the elements to keep."""
        return self.keep / ALL_KEPT


@dataclass(frozen=True)
class Recipe:
    """How to compress.

    What is dropped from, and how it is coded, concerns weights: matrices and larger. The role of a tensor (`deltapack.packing.roles`)
    says what becomes of the others, unless an override gives it another role.

    A recipe has a budget, which chooses codes and rates, or drops at a stated rate (DARE): the settings of the one do nothing in the other.
    Within a budget a tensor whose override sets a drop rate, a codec, a sparsifier or a factor is dropped from at its rate.

    Attributes:
        drop_rate: Fraction of the delta to drop, in [0, 1); 0.9 unless given, where another setting says how to drop.
        sparsify: What is dropped, a name of `deltapack.sparsify.table`: `"dare"` (at random), `"magnitude"` (the smallest), `"della"` (at
            random, the smaller the likelier), `"breadcrumbs"` (the smallest and the very largest). All but `"dare"` store their positions.
            `"dare"` unless given.
        values: Value codec; `"auto"`, as unless given, takes the smallest whose noise stays within `fidelity`.
        index: Index codec; `"auto"`, as unless given, takes the smallest, which is `seeded`. `"gaps"` is a bitmap where over 21 % are
            kept, which is what gaps in unary are.
        rescale: Factor for the kept values, above 0; `None` is what the sparsifier wants: 1 / (1 - drop_rate) for `"dare"`, one over the
            probability of each element for `"della"`, 1 for `"magnitude"` and `"breadcrumbs"`.
        seed: Any integer; another seed drops other elements.
        include: Regular expression (search); only tensors that match are dropped from, the others are kept whole.
        exclude: Regular expression (search); tensors that match are kept whole.
        overrides: Settings for single tensors; the last one that matches wins.
        epsilon: For `"della"`, the probability to keep goes from density - epsilon to density + epsilon; 0.15 unless given, or half of what
            the drop rate allows.
        gamma: For `"breadcrumbs"`, share of the largest elements to drop; 0.01 unless given.
        fidelity: Noise that an `auto` value codec may add, as a share of the noise of dropping itself, up to 1; 0.05 unless given.
        non_finite: What to do with a tensor that holds NaN or Inf: `"error"` or `"store"` (whole).
        exact: Whether nothing is lost: the result is the fine-tune, bit for bit; then no other setting means anything. Or a regular
            expression (search): tensors that match come back bit for bit.
        budget: How large the pack may be; the quality "balanced" unless given, or a setting that says how to drop.

    Raises:
        RecipeError: A setting is out of range.
    """

    drop_rate: float | None = None
    values: str | None = None
    index: str | None = None
    rescale: float | None = None
    seed: int = 0
    include: str | None = None
    exclude: str | None = None
    overrides: tuple[Override, ...] = ()
    fidelity: float | None = None
    non_finite: str = "error"
    sparsify: str | None = None
    epsilon: float | None = None
    gamma: float | None = None
    exact: bool | str = False
    budget: Budget | None = None

    def __post_init__(self) -> None:
        _numbers(self)
        _exact(self)
        _budget(self)
        dropping = self.dropping
        keep_of_drop_rate(self.rate)
        _choice("values", dropping["values"], VALUE_CHOICES)
        _choice("index", dropping["index"], INDEX_CHOICES)
        _choice("sparsify", dropping["sparsify"], SPARSIFY_CHOICES)
        _choice("non_finite", self.non_finite, ("error", "store"))
        if self.rescale is not None and not 0 < self.rescale < 3e38:
            raise RecipeError("rescale is out of range", expected="a finite f32 above 0", found=self.rescale)
        if type(self.seed) is not int or abs(self.seed) >= 1 << 63:
            raise RecipeError("seed is out of range", expected="an integer below 2^63", found=self.seed)
        if not 0 < self.noise_share <= 1:
            raise RecipeError("fidelity is out of range", expected="above 0, at most 1", found=self.fidelity)
        for option in (option for row in SPARSIFIERS.values() for option in row.options):
            if option.check is not None and getattr(self, option.name) is not None:
                option.check(getattr(self, option.name))
        self._settled(dropping["sparsify"], 1 - self.rate)
        exact = self.exact if isinstance(self.exact, str) else None
        for pattern in (self.include, self.exclude, exact, *(override.pattern for override in self.overrides)):
            check_pattern(pattern)
        for override in self.overrides:
            # A Recipe of the same settings checks their ranges.
            named = dict(settings_of(override))
            _choice("role", named.pop("role", SETTABLE[0]), SETTABLE)
            replace(self, overrides=(), include=None, exclude=None, exact=False, budget=None, **named)

    @property
    def rate(self) -> float:
        """`drop_rate`, or what it is unless given."""
        return float(self.dropping["drop_rate"])

    @property
    def dropping(self) -> dict[str, Any]:
        """Settings that say how weights are dropped from and coded, or what they are unless given."""
        given = {key: getattr(self, key) for key in _OF_WEIGHTS}
        return _USUAL | {key: value for key, value in given.items() if value is not None}

    @property
    def target(self) -> Budget | None:
        """The budget that it has, the usual one where it says nothing of how to pack; none where it drops at a rate, or loses nothing."""
        return self.budget if self.budget or self.exact is True or asked_of_dare(self) else Budget(quality=USUAL_QUALITY)

    @property
    def noise_share(self) -> float:
        """`fidelity`, or what it is unless given."""
        return USUAL_FIDELITY if self.fidelity is None else self.fidelity

    def for_tensor(self, name: str, role: str = "weight") -> TensorRecipe:
        """Return the settings for the tensor of this name and role."""
        named: dict[str, Any] = {}
        for override in self.overrides:
            if re.fullmatch(override.pattern, name):
                named |= settings_of(override)
        skipped = self.include is not None and not re.search(self.include, name)
        excluded = self.exclude is not None and bool(re.search(self.exclude, name))
        exact = self.exact is True or (isinstance(self.exact, str) and bool(re.search(self.exact, name)))
        asked = "exact" if skipped or excluded or exact else named.pop("role", role)
        role = role if role == "integer" and asked != "exact" else asked
        route = ROLES[role].route
        usual = self.dropping
        if route != "drop":
            # Few bits are for what is dropped from; a float type that the user names is no less fit for a vector.
            named = {key: named[key] for key in OF_VECTORS if key in named}
            usual = _ALL_OF_IT | ({"values": self.values} if self.values in _FLOAT_VALUES else {})
        chosen = usual | named
        budgeted = route == "drop" and self.target is not None and not named.keys() & set(_OF_WEIGHTS)
        if budgeted:
            chosen = chosen | _ALL_OF_IT
        keep, sparsify, rescale = keep_of_drop_rate(chosen["drop_rate"]), chosen["sparsify"], chosen["rescale"]
        factor = SPARSIFIERS[sparsify].factor(keep) if rescale is None else rescale
        parameters = self._settled(sparsify, keep / ALL_KEPT)
        whole = route == "exact"
        return TensorRecipe(keep, factor, chosen["values"], chosen["index"], whole, sparsify, parameters, rescale is None, role, budgeted)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a pack states it: strings and integers only."""
        if self.exact is True:
            return {"method": "exact"}
        out = self._method() | {
            "seed": str(self.seed),
            "include": self.include,
            "exclude": self.exclude,
            "exact": self.exact or None,
            "overrides": [
                {"pattern": override.pattern} | {key: str(value) for key, value in settings_of(override).items()}
                for override in self.overrides
            ],
        }
        return {key: value for key, value in out.items() if value not in (None, [])}

    def _method(self) -> dict[str, Any]:
        """Return what a pack states of how its weights were chosen."""
        if self.target is not None:
            return {"method": "budget", "target": self.target.text}
        dropping = self.dropping
        return {
            "method": dropping["sparsify"],
            "drop_rate": repr(float(self.rate)),
            "values": dropping["values"],
            "index": dropping["index"],
            "rescale": None if self.rescale is None else repr(float(self.rescale)),
            "fidelity": repr(float(self.noise_share)),
            **{name: repr(float(value)) for name, value in self._settled(dropping["sparsify"], 1 - self.rate).items()},
        }

    def _settled(self, sparsify: str, density: float) -> dict[str, float]:
        method = SPARSIFIERS[sparsify]
        return method.settled(density, {option.name: getattr(self, option.name) for option in method.options})


USUAL_FIDELITY, USUAL_RATE = 0.05, 0.9
_OF_WEIGHTS = tuple(key for key in SETTINGS if key != "role")
_USUAL: dict[str, Any] = {"drop_rate": USUAL_RATE, "values": "auto", "index": "auto", "rescale": None, "sparsify": "dare"}
_ALL_OF_IT = _USUAL | {"drop_rate": 0.0}
_FLOAT_VALUES = tuple(name for name, row in VALUE_CODECS.items() if row.dtype is not None)
OF_DARE = (*_OF_WEIGHTS, "fidelity", "epsilon", "gamma")
"""Settings that say how to drop."""


def _numbers(recipe: Recipe) -> None:
    """Require that numbers are numbers and overrides are overrides."""
    for name in ("drop_rate", "fidelity", "gamma", "rescale", "epsilon"):
        value = getattr(recipe, name)
        if value is not None:
            as_number(name, value)
    found: object = recipe.overrides
    if not isinstance(found, (tuple, list)) or not all(isinstance(override, Override) for override in found):
        hint = 'Write (deltapack.Override("REGEX", drop_rate=0.5),).'
        raise RecipeError("overrides is not a tuple of Override", found=repr(found)[:60], hint=hint)


def asked_of_dare(recipe: Recipe) -> list[str]:
    """Return the settings of a recipe that say how to drop at a stated rate."""
    return [name for name in OF_DARE if getattr(recipe, name) is not None]


def _budget(recipe: Recipe) -> None:
    """Require that a budget is one, and that nothing besides says how to drop."""
    found: object = recipe.budget
    if found is None:
        return
    if not isinstance(found, Budget):
        raise RecipeError("budget is not a Budget", expected="such as deltapack.Budget(bits=0.25)", found=repr(found)[:60])
    asked = asked_of_dare(recipe)
    if asked:
        hint = f"Leave out {asked[0]}, or the budget; a tensor can have such a setting of its own with Override (--set)."
        raise RecipeError(
            f"{asked[0]} does nothing within a budget", expected=f"{found.text} alone", found=f"{found.text} and {asked[0]}", hint=hint
        )


def _exact(recipe: Recipe) -> None:
    """Require that `exact` is one of its two kinds, and that nothing is asked of what is lost where nothing is."""
    if not isinstance(recipe.exact, (bool, str)) or recipe.exact == "":
        expected = "True, or a regular expression such as 'lm_head'"
        raise RecipeError("exact is neither a bool nor a regular expression", expected=expected, found=repr(recipe.exact)[:60])
    if recipe.exact is not True:
        return
    asked = [field.name for field in fields(recipe) if field.name != "exact" and getattr(recipe, field.name) not in (field.default, [])]
    if asked:
        name = asked[0]  # the command line has an error of its own
        hint = "Leave it out, or name the tensors that must be exact with a regular expression, such as Recipe(exact='lm_head')."
        raise RecipeError(f"{name} does nothing where all is exact", expected="exact=True alone", found=f"exact=True and {name}", hint=hint)


def _choice(name: str, value: str, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise RecipeError(f"{name} is unknown", expected="one of " + ", ".join(choices), found=value, hint=did_you_mean(value, choices))
