"""What `compress` is asked to do, checked once, and what that means for each tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deltapack.checking import as_number
from deltapack.codecs.indices import DENSE
from deltapack.errors import RecipeError, did_you_mean
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.packing.roles import ROLES, SETTABLE
from deltapack.sparsify.dare import ALL_KEPT, keep_of_drop_rate
from deltapack.sparsify.table import SPARSIFIERS, SparsifyMethod

__all__ = [
    "DENSE",
    "INDEX_CHOICES",
    "OF_VECTORS",
    "SETTINGS",
    "SPARSIFY_CHOICES",
    "USUAL_FIDELITY",
    "VALUE_CHOICES",
    "Override",
    "Recipe",
    "TensorRecipe",
    "parse_override",
    "settings_of",
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
        whole: Whether the tensor is stored whole instead, bit for bit.
        sparsify: Sparsifier.
        parameters: The sparsifier's own, by name.
        unbiased: Whether no factor was named, so that the sparsifier may divide what it keeps by its probability.
        role: The tensor's role, a name of `deltapack.packing.roles`.
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

    @property
    def method(self) -> SparsifyMethod:
        """The row of its sparsifier."""
        return SPARSIFIERS[self.sparsify]

    @property
    def density(self) -> float:
        """Share of the elements to keep."""
        return self.keep / ALL_KEPT


@dataclass(frozen=True)
class Override:
    """Other settings for tensors whose whole name matches `pattern`; `None` leaves a setting as it is.

    `role` takes one of `deltapack.packing.roles.SETTABLE`. Of a vector only `values` and `rescale` can be set unless it is made a weight,
    of an exact tensor nothing but its role.
    """

    pattern: str
    drop_rate: float | None = None
    values: str | None = None
    index: str | None = None
    rescale: float | None = None
    sparsify: str | None = None
    role: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How to compress.

    What is dropped from, and how it is coded, concerns weights: matrices and larger. The role of a tensor (`deltapack.packing.roles`)
    says what becomes of the others, unless an override gives it another role.

    Attributes:
        drop_rate: Fraction of the delta to drop, in [0, 1).
        sparsify: What is dropped, a name of `deltapack.sparsify.table`: `"dare"` (at random), `"magnitude"` (the smallest), `"della"` (at
            random, the smaller the likelier), `"breadcrumbs"` (the smallest and the very largest). All but `"dare"` store their positions.
        values: Value codec; `"auto"` takes the smallest whose noise stays within `fidelity`.
        index: Index codec; `"auto"` takes the smallest, which is `seeded`. `"gaps"` is a bitmap where over 21 % are kept, which
            is what gaps in unary are.
        rescale: Factor for the kept values, above 0; `None` is what the sparsifier wants: 1 / (1 - drop_rate) for `"dare"`, one over the
            probability of each element for `"della"`, 1 for `"magnitude"` and `"breadcrumbs"`.
        seed: Any integer; another seed drops other elements.
        include: Regular expression (search); only tensors that match are dropped from, the others are stored whole.
        exclude: Regular expression (search); tensors that match are stored whole.
        overrides: Settings for single tensors; the last one that matches wins.
        epsilon: For `"della"`, the probability to keep goes from density - epsilon to density + epsilon; 0.15 unless given, or half of what
            the drop rate allows.
        gamma: For `"breadcrumbs"`, share of the largest elements to drop; 0.01 unless given.
        fidelity: Noise that an `auto` value codec may add, as a share of the noise of dropping itself, up to 1; 0.05 unless given.
        non_finite: What to do with a tensor that holds NaN or Inf: `"error"` or `"store"` (whole).

    Raises:
        RecipeError: A setting is out of range.
    """

    drop_rate: float = 0.9
    values: str = "auto"
    index: str = "auto"
    rescale: float | None = None
    seed: int = 0
    include: str | None = None
    exclude: str | None = None
    overrides: tuple[Override, ...] = ()
    fidelity: float | None = None
    non_finite: str = "error"
    sparsify: str = "dare"
    epsilon: float | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        _numbers(self)
        keep_of_drop_rate(self.drop_rate)
        _choice("values", self.values, VALUE_CHOICES)
        _choice("index", self.index, INDEX_CHOICES)
        _choice("sparsify", self.sparsify, SPARSIFY_CHOICES)
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
        self._settled(self.sparsify, 1 - self.drop_rate)
        for pattern in (self.include, self.exclude, *(override.pattern for override in self.overrides)):
            _regex(pattern)
        for override in self.overrides:
            # A Recipe of the same settings checks their ranges.
            named = dict(settings_of(override))
            _choice("role", named.pop("role", SETTABLE[0]), SETTABLE)
            replace(self, overrides=(), include=None, exclude=None, **named)

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
        asked = "exact" if skipped or excluded else named.pop("role", role)
        role = role if role == "integer" and asked != "exact" else asked
        route = ROLES[role].route
        usual = {key: getattr(self, key) for key in _OF_WEIGHTS}
        if route != "drop":
            # Few bits are for what is dropped from; a float type that the user names is no less fit for a vector.
            named = {key: named[key] for key in OF_VECTORS if key in named}
            usual = _ALL_OF_IT | ({"values": self.values} if self.values in _FLOAT_VALUES else {})
        chosen = usual | named
        keep, sparsify, rescale = keep_of_drop_rate(chosen["drop_rate"]), chosen["sparsify"], chosen["rescale"]
        factor = SPARSIFIERS[sparsify].factor(keep) if rescale is None else rescale
        parameters = self._settled(sparsify, keep / ALL_KEPT)
        whole = route == "exact"
        return TensorRecipe(keep, factor, chosen["values"], chosen["index"], whole, sparsify, parameters, rescale is None, role)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a pack states it: strings and integers only."""
        out: dict[str, Any] = {
            "method": self.sparsify,
            "drop_rate": repr(float(self.drop_rate)),
            "values": self.values,
            "index": self.index,
            "rescale": None if self.rescale is None else repr(float(self.rescale)),
            "seed": str(self.seed),
            "include": self.include,
            "exclude": self.exclude,
            "fidelity": repr(float(self.noise_share)),
            **{name: repr(float(value)) for name, value in self._settled(self.sparsify, 1 - self.drop_rate).items()},
            "overrides": [
                {"pattern": override.pattern} | {key: str(value) for key, value in settings_of(override).items()}
                for override in self.overrides
            ],
        }
        return {key: value for key, value in out.items() if value not in (None, [])}

    def _settled(self, sparsify: str, density: float) -> dict[str, float]:
        method = SPARSIFIERS[sparsify]
        return method.settled(density, {option.name: getattr(self, option.name) for option in method.options})


def parse_override(text: str) -> Override:
    """Parse an expression and settings.

    >>> parse_override(".*lm_head.*:drop-rate=0.5,values=bf16")
    Override(pattern='.*lm_head.*', drop_rate=0.5, values='bf16', index=None, rescale=None, sparsify=None, role=None)

    Raises:
        RecipeError: The text is not of this form.
    """
    pattern, colon, settings = text.rpartition(":")
    found: dict[str, Any] = {}
    for setting in settings.split(","):
        key, equals, value = setting.partition("=")
        name = key.strip().replace("-", "_")
        if colon and equals and name not in SETTINGS:
            known = [setting.replace("_", "-") for setting in SETTINGS]
            hint = did_you_mean(name, known)
            raise RecipeError("an override has no such setting", expected=f"one of {', '.join(known)}", found=key.strip(), hint=hint)
        if not colon or not equals:
            expected = "REGEX:drop-rate=0.5,values=bf16,index=gaps,rescale=2,sparsify=dare,role=weight"
            raise RecipeError("cannot read an override", expected=expected, found=text)
        try:
            found[name] = float(value) if name in ("drop_rate", "rescale") else value.strip()
        except ValueError as error:
            raise RecipeError(f"{key} is not a number", found=value) from error
    return Override(pattern, **found)


SETTINGS = ("drop_rate", "values", "index", "rescale", "sparsify", "role")
"""What an override may set."""

OF_VECTORS = ("values", "rescale")
"""What it may set of a tensor whose difference is kept whole."""

_OF_WEIGHTS = tuple(key for key in SETTINGS if key != "role")
_ALL_OF_IT = {"drop_rate": 0.0, "values": "auto", "index": "auto", "rescale": None, "sparsify": "dare"}
_FLOAT_VALUES = tuple(name for name, row in VALUE_CODECS.items() if row.dtype is not None)
USUAL_FIDELITY = 0.05


def settings_of(override: Override) -> Mapping[str, Any]:
    """Return what an override sets."""
    pairs = {key: getattr(override, key) for key in SETTINGS}
    return {key: value for key, value in pairs.items() if value is not None}


def _numbers(recipe: Recipe) -> None:
    """Require that numbers are numbers and overrides are overrides."""
    for name in ("drop_rate", "fidelity", "gamma", "rescale", "epsilon"):
        value = getattr(recipe, name)
        if value is not None or name == "drop_rate":
            as_number(name, value)
    found: object = recipe.overrides
    if not isinstance(found, (tuple, list)) or not all(isinstance(override, Override) for override in found):
        hint = 'Write (deltapack.Override("REGEX", drop_rate=0.5),).'
        raise RecipeError("overrides is not a tuple of Override", found=repr(found)[:60], hint=hint)


def _choice(name: str, value: str, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise RecipeError(f"{name} is unknown", expected="one of " + ", ".join(choices), found=value, hint=did_you_mean(value, choices))


def _regex(pattern: str | None) -> None:
    if not isinstance(pattern, str | None):
        raise RecipeError("a regular expression is not a text", found=repr(pattern)[:60])
    try:
        re.compile(pattern or "")
        (pattern or "").encode()  # the pack states it in UTF-8
    except (re.error, OverflowError, RecursionError, UnicodeError) as error:
        raise RecipeError(f"a regular expression is wrong: {error}", found=pattern) from error
