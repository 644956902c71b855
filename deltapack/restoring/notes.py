"""What is said of a result that is not plain to see."""

from __future__ import annotations

from collections.abc import Mapping

from deltapack.composing.compose import Composition
from deltapack.composing.weighted import WeightedPack

__all__ = ["not_written", "of_rescale"]


def of_rescale(pack: WeightedPack) -> list[str]:
    """Return what a rescale has done that is not plain to see."""
    if pack.rescale is None:
        return []
    own = sorted({term.factor for entry in pack.reader.index.entries for term in entry.terms if term.index_codec.kept != "all"})
    if not own:
        return ["rescale changed nothing: this pack has kept every element of what it changes; --weight scales the difference"]
    if own[0] < own[-1]:
        many = f"factors from {own[0]:.3g} to {own[-1]:.3g} that tensors had of their own"
        return [f"rescale took the place of {many}; `deltapack tune` finds one for all that leaves them in proportion"]
    return []


def not_written(composition: Composition, own_files: Mapping[str, bytes]) -> list[str]:
    """Say so where a result of one file leaves out what a folder would have beside the weights."""
    assets = composition.assets
    names = sorted({*(() if assets is None else (file.name for file in assets.index.files or ())), *own_files})
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
    return [f"{shown} not written: the output is one file; name a folder to have them, too"]
