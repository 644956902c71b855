"""Settings for single tensors, by regular expressions of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltapack.errors import RecipeError, did_you_mean

__all__ = ["OF_VECTORS", "SETTINGS", "Override", "parse_override", "settings_of"]


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


def settings_of(override: Override) -> Mapping[str, Any]:
    """Return what an override sets."""
    pairs = {key: getattr(override, key) for key in SETTINGS}
    return {key: value for key, value in pairs.items() if value is not None}
