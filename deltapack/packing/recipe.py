"""What `compress` is asked to do, checked once, and what that means for each tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deltapack.codecs.indices import DENSE
from deltapack.errors import RecipeError, did_you_mean
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.sparsify.dare import ALL_KEPT, keep_of_drop_rate
from deltapack.sparsify.table import SPARSIFIERS, SparsifyMethod

__all__ = [
    "DENSE",
    "INDEX_CHOICES",
    "SETTINGS",
    "SPARSIFY_CHOICES",
    "VALUE_CHOICES",
    "Override",
    "Recipe",
    "TensorRecipe",
    "parse_override",
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
    """

    keep: int
    factor: float
    values: str
    index: str
    whole: bool = False
    sparsify: str = "dare"
    parameters: Mapping[str, float] = field(default_factory=dict)
    unbiased: bool = False

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
    """Other settings for tensors whose whole name matches `pattern`; `None` leaves a setting as it is."""

    pattern: str
    drop_rate: float | None = None
    values: str | None = None
    index: str | None = None
    rescale: float | None = None
    sparsify: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How to compress.

    Attributes:
        drop_rate: Fraction of the delta to drop, in [0, 1).
        sparsify: What is dropped, a name of `deltapack.sparsify.table`: `"dare"` (at random), `"magnitude"` (the smallest), `"della"` (at
            random, the smaller the likelier), `"breadcrumbs"` (the smallest and the very largest). All but `"dare"` store their positions.
        values: Value codec; `"auto"` takes the smallest whose noise stays within `fidelity`.
        index: Index codec; `"auto"` takes the smallest, which is `seeded`. `"gaps"` is a bitmap where over 21 % are kept, which
            is what gaps in unary are.
        rescale: Factor for the kept values; `None` is what the sparsifier wants: 1 / (1 - drop_rate) for `"dare"`, one over the
            probability of each element for `"della"`, 1 for `"magnitude"` and `"breadcrumbs"`.
        seed: Any integer; another seed drops other elements.
        include: Regular expression (search); only tensors that match are dropped from, the others are stored whole.
        exclude: Regular expression (search); tensors that match are stored whole.
        overrides: Settings for single tensors; the last one that matches wins.
        epsilon: For `"della"`, the probability to keep goes from density - epsilon to density + epsilon; 0.15 unless given, or half of what
            the drop rate allows.
        gamma: For `"breadcrumbs"`, share of the largest elements to drop.
        fidelity: Noise that an `auto` value codec may add, as a share of the noise of dropping itself.
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
    fidelity: float = 0.05
    non_finite: str = "error"
    sparsify: str = "dare"
    epsilon: float | None = None
    gamma: float = 0.01

    def __post_init__(self) -> None:
        keep_of_drop_rate(self.drop_rate)
        _choice("values", self.values, VALUE_CHOICES)
        _choice("index", self.index, INDEX_CHOICES)
        _choice("sparsify", self.sparsify, SPARSIFY_CHOICES)
        _choice("non_finite", self.non_finite, ("error", "store"))
        _finite("rescale", self.rescale)
        if type(self.seed) is not int or abs(self.seed) >= 1 << 63:
            raise RecipeError("seed is out of range", expected="an integer below 2^63", found=self.seed)
        if not (math.isfinite(self.fidelity) and self.fidelity > 0):
            raise RecipeError("fidelity is out of range", expected="above 0", found=self.fidelity)
        for option in (option for row in SPARSIFIERS.values() for option in row.options):
            if option.check is not None and getattr(self, option.name) is not None:
                option.check(getattr(self, option.name))
        self._settled(self.sparsify, 1 - self.drop_rate)
        for pattern in (self.include, self.exclude, *(override.pattern for override in self.overrides)):
            _regex(pattern)
        for override in self.overrides:
            # A Recipe of the same settings checks their ranges.
            replace(self, overrides=(), include=None, exclude=None, **_settings(override))

    def for_tensor(self, name: str) -> TensorRecipe:
        """Return the settings for the tensor of this name."""
        chosen = {key: getattr(self, key) for key in SETTINGS}
        for override in self.overrides:
            if re.fullmatch(override.pattern, name):
                chosen |= _settings(override)
        keep, sparsify, rescale = keep_of_drop_rate(chosen["drop_rate"]), chosen["sparsify"], chosen["rescale"]
        factor = SPARSIFIERS[sparsify].factor(keep) if rescale is None else rescale
        skipped = self.include is not None and not re.search(self.include, name)
        excluded = self.exclude is not None and bool(re.search(self.exclude, name))
        whole = skipped or excluded
        parameters = self._settled(sparsify, keep / ALL_KEPT)
        return TensorRecipe(keep, factor, chosen["values"], chosen["index"], whole, sparsify, parameters, unbiased=rescale is None)

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
            "fidelity": repr(float(self.fidelity)),
            **{name: repr(float(value)) for name, value in self._settled(self.sparsify, 1 - self.drop_rate).items()},
            "overrides": [
                {"pattern": override.pattern} | {key: str(value) for key, value in _settings(override).items()}
                for override in self.overrides
            ],
        }
        return {key: value for key, value in out.items() if value not in (None, [])}

    def _settled(self, sparsify: str, density: float) -> dict[str, float]:
        method = SPARSIFIERS[sparsify]
        return method.settled(density, {option.name: getattr(self, option.name) for option in method.options})


def parse_override(text: str) -> Override:
    """Parse an expression and settings.

    >>> parse_override(".*norm.*:drop-rate=0.5,values=bf16")
    Override(pattern='.*norm.*', drop_rate=0.5, values='bf16', index=None, rescale=None, sparsify=None)

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
            expected = "REGEX:drop-rate=0.5,values=bf16,index=gaps,rescale=2,sparsify=dare"
            raise RecipeError("cannot read an override", expected=expected, found=text)
        try:
            found[name] = float(value) if name in ("drop_rate", "rescale") else value.strip()
        except ValueError as error:
            raise RecipeError(f"{key} is not a number", found=value) from error
    return Override(pattern, **found)


SETTINGS = ("drop_rate", "values", "index", "rescale", "sparsify")
"""What an override may set."""


def _settings(override: Override) -> Mapping[str, Any]:
    pairs = {key: getattr(override, key) for key in SETTINGS}
    return {key: value for key, value in pairs.items() if value is not None}


def _choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is unknown", expected="one of " + ", ".join(choices), found=value, hint=did_you_mean(value, choices))


def _finite(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and abs(value) < 3e38):
        raise RecipeError(f"{name} is not a finite f32", found=value)


def _regex(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
        (pattern or "").encode()  # the pack states it in UTF-8
    except (re.error, OverflowError, RecursionError, UnicodeError) as error:
        raise RecipeError(f"a regular expression is wrong: {error}", found=pattern) from error
