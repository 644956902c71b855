"""How large a pack may be: a size, a ratio, bits a weight, or a quality that has a name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from deltapack.checking import as_number, as_text
from deltapack.checkpoint.layout import parse_size
from deltapack.errors import RecipeError, did_you_mean

__all__ = ["ABOVE", "AIM", "BELOW", "QUALITIES", "USUAL_QUALITY", "Budget", "Quality"]

BELOW, ABOVE = 0.02, 0.005
"""Shares of a size that was asked for by which a pack may be smaller, and larger."""
AIM = 0.9935
"""The share that is aimed at: between the two, and rather below."""
_LARGEST, _LONGEST = 1 << 62, 40


@dataclass(frozen=True)
class Quality:
    """A budget that has a name: bits for each weight that is coded; what else a pack holds is not counted in.

    Attributes:
        text: What it is, for people.
        least: Bits a weight.
        most: Bits a weight that it takes where `loss` asks for them.
        loss: Share of the fine-tune's gain whose predicted loss is allowed.
    """

    text: str
    least: float
    most: float
    loss: float = 0.0


QUALITIES: Mapping[str, Quality] = {
    "high": Quality("1 bit a weight", 1.0, 1.0),
    "balanced": Quality("as few bits a weight as a predicted loss of 2 % allows, from 0.1 to 0.16", 0.1, 0.16, 0.02),
    "small": Quality("0.05 bits a weight", 0.05, 0.05),
}
"""Qualities by name."""
USUAL_QUALITY = "balanced"


@dataclass(frozen=True)
class Budget:
    """How large a pack may be; exactly one of the four is given.

    A size, a ratio and bits are about the whole file: weights, vectors, exact tensors, side files and the index. They are reached within
    2 %, and never exceeded by more than 0.5 %. A quality is about the weights that are coded.

    Attributes:
        size: Bytes, or text such as `"50MB"`.
        ratio: How many times smaller the pack is than the fine-tune's tensors.
        bits: Bits of the file for each float element of the fine-tune.
        quality: A name of `QUALITIES`: `"high"`, `"balanced"` or `"small"`.

    Raises:
        RecipeError: None or several are given, or one is out of range.
    """

    size: int | str | None = None
    ratio: float | None = None
    bits: float | None = None
    quality: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            expected = "one of size, ratio, bits and quality"
            raise RecipeError("a budget is one number or one quality", expected=expected, found=" and ".join(given) or "none")
        if self.size is not None:
            _check_size(self.size)
        for name in ("ratio", "bits"):
            value = getattr(self, name)
            if value is not None and not 0 < as_number(name, value) < math.inf:
                what = f"the {name} that a pack should have {'are' if name == 'bits' else 'is'} out of range"
                raise RecipeError(what, expected="a finite number above 0", found=value)
        if self.quality is not None and as_text("quality", self.quality) not in QUALITIES:
            hint = did_you_mean(self.quality, QUALITIES)
            raise RecipeError("quality is unknown", expected="one of " + ", ".join(QUALITIES), found=self.quality, hint=hint)

    @property
    def named(self) -> Quality | None:
        """The quality that it names, if it does."""
        return None if self.quality is None else QUALITIES[self.quality]

    @property
    def text(self) -> str:
        """What it says, as a pack states it.

        >>> Budget(bits=0.25).text, Budget(size="50MB").text, Budget(quality="small").text
        ('bits=0.25', 'size=50MB', 'quality=small')
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                return f"{field.name}={float(value)!r}" if field.name in ("ratio", "bits") else f"{field.name}={value}".replace(" ", "")
        raise AssertionError("checked when it was made")

    def pack_bytes(self, weights: int, checkpoint_bytes: int) -> int | None:
        """Return how large the file may be; `None` where a quality says it.

        Args:
            weights: Float elements of the fine-tune.
            checkpoint_bytes: Bytes of its tensors.

        >>> Budget(bits=0.25).pack_bytes(32_000, 64_000), Budget(ratio=100).pack_bytes(32_000, 64_000)
        (1000, 640)
        """
        if self.size is not None:
            return _check_size(self.size)
        if self.ratio is not None:
            return int(min(checkpoint_bytes / self.ratio, _LARGEST))
        return None if self.bits is None else int(min(self.bits * weights / 8, _LARGEST))


def _check_size(size: int | str) -> int:
    """Return the bytes of a size.

    Raises:
        RecipeError: It is none, or out of range.
    """
    if isinstance(size, str):
        if len(size) > _LONGEST:
            raise RecipeError("the size of a budget is too long a text", expected=f"at most {_LONGEST} characters", found=f"{size[:20]}...")
        size = parse_size(size)
    if not isinstance(size, int) or isinstance(size, bool):
        raise RecipeError("the size of a budget is no size", expected='bytes, or text such as "50MB"', found=repr(size)[:60])
    if not 0 < size <= _LARGEST:
        raise RecipeError("the size of a budget is out of range", expected="at least 1 byte, below 2^62", found=size)
    return size
