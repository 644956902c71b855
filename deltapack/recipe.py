"""What `compress` is asked to do, checked once, and what that means for each tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deltapack.errors import RecipeError
from deltapack.sparsify.dare import keep_of_drop_rate, rescale_factor

__all__ = ["INDEX_CHOICES", "VALUE_CHOICES", "Override", "Recipe", "TensorRecipe", "parse_override"]

VALUE_CHOICES = ("auto", "f32", "bf16", "f16", "int8", "int4", "int3", "int2", "sign")
INDEX_CHOICES = ("auto", "seeded", "gaps", "bitmap")


@dataclass(frozen=True)
class TensorRecipe:
    """How one tensor is packed.

    Attributes:
        keep: Density times 2^32.
        factor: Rescale, an f32.
        values: Value codec or `"auto"`.
        index: Index codec or `"auto"`.
        whole: Whether the tensor is stored whole instead, bit for bit.
    """

    keep: int
    factor: float
    values: str
    index: str
    whole: bool = False


@dataclass(frozen=True)
class Override:
    """Other settings for tensors whose whole name matches `pattern`; `None` leaves a setting as it is."""

    pattern: str
    drop_rate: float | None = None
    values: str | None = None
    index: str | None = None
    rescale: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How to compress.

    Attributes:
        drop_rate: Fraction of the delta to drop, in [0, 1).
        values: Value codec; `"auto"` takes the smallest whose noise stays within `fidelity`.
        index: Index codec; `"auto"` takes the smallest, which is `seeded`. `"gaps"` is a bitmap where over 38 % are kept, which
            is what gaps in unary are.
        rescale: Factor for the kept values; `None` is 1 / (1 - drop_rate).
        seed: Any integer; another seed drops other elements.
        include: Regular expression (search); only tensors that match are dropped from, the others are stored whole.
        exclude: Regular expression (search); tensors that match are stored whole.
        overrides: Settings for single tensors; the last one that matches wins.
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

    def __post_init__(self) -> None:
        keep_of_drop_rate(self.drop_rate)
        _choice("values", self.values, VALUE_CHOICES)
        _choice("index", self.index, INDEX_CHOICES)
        _choice("non_finite", self.non_finite, ("error", "store"))
        _finite("rescale", self.rescale)
        if type(self.seed) is not int or abs(self.seed) >= 1 << 63:
            raise RecipeError("seed is out of range", expected="an integer below 2^63", found=self.seed)
        if not (math.isfinite(self.fidelity) and self.fidelity > 0):
            raise RecipeError("fidelity is out of range", expected="above 0", found=self.fidelity)
        for pattern in (self.include, self.exclude, *(override.pattern for override in self.overrides)):
            _regex(pattern)
        for override in self.overrides:
            # A Recipe of the same settings checks their ranges.
            replace(self, overrides=(), include=None, exclude=None, **_settings(override))

    def for_tensor(self, name: str) -> TensorRecipe:
        """Return the settings for the tensor of this name."""
        drop_rate, values, index, rescale = self.drop_rate, self.values, self.index, self.rescale
        for override in self.overrides:
            if re.fullmatch(override.pattern, name):
                settings = _settings(override)
                drop_rate = settings.get("drop_rate", drop_rate)
                values, index = settings.get("values", values), settings.get("index", index)
                rescale = settings.get("rescale", rescale)
        keep = keep_of_drop_rate(drop_rate)
        factor = rescale_factor(keep) if rescale is None else rescale
        skipped = self.include is not None and not re.search(self.include, name)
        excluded = self.exclude is not None and bool(re.search(self.exclude, name))
        return TensorRecipe(keep, factor, values, index, whole=skipped or excluded)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a pack states it: strings and integers only."""
        out: dict[str, Any] = {
            "method": "dare",
            "drop_rate": repr(float(self.drop_rate)),
            "values": self.values,
            "index": self.index,
            "rescale": None if self.rescale is None else repr(float(self.rescale)),
            "seed": str(self.seed),
            "include": self.include,
            "exclude": self.exclude,
            "fidelity": repr(float(self.fidelity)),
            "overrides": [
                {"pattern": override.pattern} | {key: str(value) for key, value in _settings(override).items()}
                for override in self.overrides
            ],
        }
        return {key: value for key, value in out.items() if value not in (None, [])}


def parse_override(text: str) -> Override:
    """Parse `REGEX:drop-rate=0.5,values=bf16`.

    Raises:
        RecipeError: The text is not of this form.
    """
    pattern, colon, settings = text.rpartition(":")
    found: dict[str, Any] = {}
    for setting in settings.split(","):
        key, equals, value = setting.partition("=")
        name = key.strip().replace("-", "_")
        if not colon or not equals or name not in ("drop_rate", "values", "index", "rescale"):
            expected = "REGEX:drop-rate=0.5,values=bf16,index=gaps,rescale=2"
            raise RecipeError("cannot read an override", expected=expected, found=text)
        try:
            found[name] = float(value) if name in ("drop_rate", "rescale") else value.strip()
        except ValueError as error:
            raise RecipeError(f"{key} is not a number", found=value) from error
    return Override(pattern, **found)


def _settings(override: Override) -> Mapping[str, Any]:
    pairs = {key: getattr(override, key) for key in ("drop_rate", "values", "index", "rescale")}
    return {key: value for key, value in pairs.items() if value is not None}


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is unknown", expected="one of " + ", ".join(choices), found=value)


def _finite(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and abs(value) < 3e38):
        raise RecipeError(f"{name} is not a finite f32", found=value)


def _regex(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
        (pattern or "").encode()  # the pack states it in UTF-8
    except (re.error, OverflowError, RecursionError, UnicodeError) as error:
        raise RecipeError(f"a regular expression is wrong: {error}", found=pattern) from error
