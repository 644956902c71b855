"""Which tensors of a pack share a tuned factor."""

from __future__ import annotations

from pathlib import Path

from deltapack.analysis.retuning import is_tunable
from deltapack.errors import RecipeError
from deltapack.format.index import Index
from deltapack.merging.recipe import layer_number

__all__ = ["groups_of"]


def groups_of(path: Path, index: Index, count: int, *, factors: bool) -> dict[str, frozenset[str]]:
    """Divide the tensors whose factors may be tuned into groups of consecutive layers, in order; those outside of the layers are one more.

    Args:
        path: The pack, for errors.
        index: What it says.
        count: Number of groups; 1 is all tensors, whatever their layers.
        factors: Whether low-rank terms may be tuned.

    Returns:
        Names of entries by the name of their group.

    Raises:
        RecipeError: Nothing may be tuned, or there are fewer layers than groups.
    """
    names = [entry.name for entry in index.entries if any(is_tunable(term, factors=factors) for term in entry.terms)]
    if not names:
        hint = "Nothing is dropped by --exact, by --drop-rate 0, and by budgets that have room for all elements."
        raise RecipeError("there is nothing to tune: nothing was dropped", path=path, hint=hint)
    if count == 1:
        return {"all": frozenset(names)}
    numbers = {name: layer_number(name) for name in names}
    layers = sorted({number for number in numbers.values() if number is not None})
    if count > len(layers):
        what = "there are fewer layers than groups"
        raise RecipeError(
            what, path=path, expected=f"at most {len(layers)} groups", found=count, hint="One factor for all needs no layers."
        )
    groups: dict[str, frozenset[str]] = {}
    for group in range(count):
        own = layers[group * len(layers) // count : (group + 1) * len(layers) // count]
        title = f"layer {own[0]}" if len(own) == 1 else f"layers {own[0]} to {own[-1]}"
        groups[title] = frozenset(name for name, number in numbers.items() if number in own)
    outside = frozenset(name for name, number in numbers.items() if number is None)
    return groups | ({"outside of the layers": outside} if outside else {})
