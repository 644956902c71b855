"""From the arguments of a merge to what each tensor will be made of, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltapack.basecheck import BaseTensors
from deltapack.blending import blend_with
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing import Composition, compose
from deltapack.dtypes import DType
from deltapack.errors import RecipeError
from deltapack.format.reader import PackReader
from deltapack.merge_methods.table import MergeMethod
from deltapack.merge_recipe import Layers, MergeRecipe
from deltapack.weighted import WeightedPack

__all__ = ["MergePlan", "compose_recipe", "plan_merge"]


@dataclass(frozen=True)
class MergePlan:
    """A merge that has not read any tensor yet.

    Attributes:
        base: The base.
        packs: The packs with their weights, in the order given.
        recipe: The recipe, with one weight per pack.
        layers: The layers of the base.
        composition: What the result is made of.
        prefer: Number of the pack that decides on what cannot be added.
        vocab: Number of the pack whose rows a tensor has that packs grew, or `"base"`.
    """

    base: Checkpoint
    packs: tuple[WeightedPack, ...]
    recipe: MergeRecipe
    layers: Layers
    composition: Composition
    prefer: int | None = None
    vocab: int | Literal["base"] | None = None

    def side_by_side(self, method: MergeMethod | None = None) -> Composition:
        """Return the composition with the packs' differences unweighted and apart, also where the recipe merely adds them.

        Args:
            method: Another method than the recipe's, with its weights.
        """
        blend = blend_with(self.recipe, self.layers, len(self.packs), method)
        return compose(self.base, self.packs, prefer=self.prefer, vocab=self.vocab, blend=blend)

    @property
    def notes(self) -> list[str]:
        """What the user should be told."""
        return [*self.base.notes, *self.composition.notes]

    @property
    def paths(self) -> list[Path]:
        """The packs' files."""
        return [pack.reader.path for pack in self.packs]

    def stated_recipe(self) -> Mapping[str, Any]:
        """Return the recipe as a merged pack states it."""
        return self.recipe.to_json([pack.reader.pack_id for pack in self.packs])


def plan_merge(
    stack: ExitStack,
    base: str | Path,
    packs: Sequence[str | Path],
    recipe: MergeRecipe,
    *,
    prefer: str | Path | None = None,
    assets: str | Path | None = None,
    vocab: str | Path | None = None,
    dtype: DType | None = None,
) -> MergePlan:
    """Open base and packs on `stack`, check them against each other and plan every tensor.

    Raises:
        BaseMismatchError: A pack was made from another base.
        FormatError: The header of a pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        RecipeError: The recipe does not fit the packs.
    """
    if not packs:
        raise RecipeError("nothing to merge", expected="at least one pack")
    recipe = recipe.for_packs(len(packs))
    preferred = _position("prefer", prefer, packs)
    if vocab == "union":
        hint = "Name the pack whose tokens the result has, or base; tokens that two packs added have the same ids in both."
        raise RecipeError("vocabularies cannot be united", expected="base or one of the packs", found=vocab, hint=hint)
    donor, rows = _owner("assets", assets, packs), _owner("vocab", vocab, packs)
    base_ckpt = stack.enter_context(open_checkpoint(base))
    readers = [stack.enter_context(PackReader(path)) for path in packs]
    weighted, composition = compose_recipe(base_ckpt, readers, recipe, prefer=preferred, assets=donor, vocab=rows, dtype=dtype)
    return MergePlan(base_ckpt, tuple(weighted), recipe, Layers.of(base_ckpt.tensors), composition, preferred, rows)


def compose_recipe(
    base: BaseTensors,
    readers: Sequence[PackReader],
    recipe: MergeRecipe,
    *,
    prefer: int | None = None,
    assets: int | Literal["base"] | None = None,
    vocab: int | Literal["base"] | None = None,
    dtype: DType | None = None,
) -> tuple[list[WeightedPack], Composition]:
    """Return packs with the weights that a recipe gives them, and what each tensor will be made of.

    Raises:
        BaseMismatchError: A pack was made from another base.
        FormatError: The header of a pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        RecipeError: The recipe does not fit the packs.
    """
    layers = Layers.of(base.tensors)
    is_sum = recipe.formula.is_linear and not recipe.densities
    weighted = _weighted(readers, recipe, layers, base) if is_sum else [WeightedPack(reader) for reader in readers]
    blend = None if is_sum else blend_with(recipe, layers, len(readers))
    return weighted, compose(base, weighted, prefer=prefer, assets=assets, vocab=vocab, dtype=dtype, blend=blend)


def _weighted(readers: Sequence[PackReader], recipe: MergeRecipe, layers: Layers, base: BaseTensors) -> list[WeightedPack]:
    """Return the packs with their effective weights, which are folded into the factors of their terms."""
    names = {name: recipe.weights_at(name, layers.depth(name), len(readers)) for name in base.tensors}
    out = []
    for number, reader in enumerate(readers):
        values = {name: weights[number] for name, weights in names.items()}
        if all(schedule.single is not None for schedule in recipe.weights):
            out.append(WeightedPack(reader, recipe.weights_at("", 0.0, len(readers))[number]))
        else:
            out.append(WeightedPack(reader, by_tensor=values))
    return out


def _owner(what: str, chosen: str | Path | None, packs: Sequence[str | Path]) -> int | Literal["base"] | None:
    return "base" if chosen == "base" else _position(what, chosen, packs)


def _position(what: str, chosen: str | Path | None, packs: Sequence[str | Path]) -> int | None:
    if chosen is None:
        return None
    for position, pack in enumerate(packs):
        if Path(pack).resolve() == Path(chosen).resolve():
            return position
    raise RecipeError(f"the pack that {what} names is not among the packs", found=chosen)
