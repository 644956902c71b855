"""The packs that a caller wants active, in every way that there is of saying so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltapack.checking import as_number, as_pack, as_paths
from deltapack.errors import RecipeError

__all__ = ["Packs", "weights_of"]

Packs = Mapping[str, float] | Mapping[Path, float] | Mapping["str | Path", float] | Sequence["str | Path"] | str | Path
"""Weights of packs, in order of addition; or packs of weight 1; or one such pack."""


def weights_of(packs: Packs) -> dict[Path, float]:
    """Return each pack's weight, in order.

    Raises:
        RecipeError: A pack is no path or is there twice, or a weight is no finite number.
    """
    if isinstance(packs, Mapping):
        pairs = [(as_pack("a pack", path), as_number("weight", weight)) for path, weight in packs.items()]
    else:
        paths = (as_pack("a pack", packs),) if isinstance(packs, str | Path) else as_paths("packs", packs)
        pairs = [(path, 1.0) for path in paths]
    out: dict[Path, float] = {}
    for path, weight in pairs:
        if path in out:
            raise RecipeError("a pack is given twice", path=path, hint="Give it once, with the sum of the weights.")
        if not math.isfinite(weight):
            raise RecipeError("a weight is not a finite number", path=path, found=weight)
        out[path] = weight
    return out
