"""From the arguments of a merge to what each tensor will be made of, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deltapack.checking import as_checkpoint, as_pack, as_paths
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import read_side_file
from deltapack.composing.basecheck import BaseTensors, check_base
from deltapack.composing.compose import Composition, Vocab, compose
from deltapack.composing.heads import fit_head
from deltapack.composing.tokenizer_files import TOKENIZER, files_with, parse_tokenizer
from deltapack.composing.vocabulary import Vocabulary, growth_of, unite
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType
from deltapack.errors import MergeConflictError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.merging.blending import blend_with
from deltapack.merging.methods.table import MergeMethod
from deltapack.merging.recipe import Layers, MergeRecipe
from deltapack.merging.request import MergeRequest
from deltapack.merging.unused import refuse_unused_rules
from deltapack.packing.adapter_packs import packs_of_adapters

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
        vocab: Number of the pack whose rows a tensor has that packs grew, or `"base"`, or the united vocabulary.
        files: Side files that the merge changes, for a united vocabulary or a head that is tied or not, by name.
        donor: Number of the pack that the side files were asked from, or `"base"`, if either was.
        of_adapters: What was noticed of adapters among the packs.
    """

    base: Checkpoint
    packs: tuple[WeightedPack, ...]
    recipe: MergeRecipe
    layers: Layers
    composition: Composition
    prefer: int | None = None
    vocab: Vocab | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    donor: int | Literal["base"] | None = None
    of_adapters: tuple[str, ...] = ()

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
        united = self.vocab.notes if isinstance(self.vocab, Vocabulary) else ()
        return [*self.base.notes, *self.of_adapters, *self.composition.notes, *united]

    @property
    def paths(self) -> list[Path]:
        """The packs' files."""
        return [pack.reader.path for pack in self.packs]

    def stated_recipe(self) -> Mapping[str, Any]:
        """Return the recipe as a merged pack states it."""
        return self.recipe.to_json([pack.reader.pack_id for pack in self.packs])

    def stated_choices(self, request: MergeRequest) -> Mapping[str, str | None]:
        """Return which packs decide, each by its pack id and whatever its file is called.

        Args:
            request: What the plan was made of.

        Raises:
            RecipeError: One of them is not among the packs.
        """

        def stated(what: str, chosen: str | Path | None) -> str | None:
            if chosen is None or chosen in ("base", "union"):
                return None if chosen is None else str(chosen)
            position = _position(what, chosen, request.packs)
            assert position is not None
            return self.packs[position].reader.pack_id

        return {what: stated(what, chosen) for what, chosen in vars(request.choices).items()}


def plan_merge(stack: ExitStack, request: MergeRequest, dtype: DType | None = None, workers: int | None = None) -> MergePlan:
    """Open base and packs on `stack`, check them against each other and plan every tensor; adapters become exact packs first.

    Raises:
        BaseMismatchError: A pack was made from another base.
        CheckpointError: A tokenizer file is damaged, and vocabularies are united.
        FormatError: The header of a pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide, or vocabularies cannot be united.
        RecipeError: The recipe does not fit the packs.
    """
    packs, choices = request.packs, request.choices
    if not packs:
        raise RecipeError("nothing to merge", expected="at least one pack")
    recipe = request.recipe.for_packs(len(packs))
    preferred = _position("prefer", choices.prefer, packs)
    donor = _owner("assets", choices.assets, packs)
    base_ckpt = stack.enter_context(open_checkpoint(request.base, weights=request.weight_files))
    base, weights = as_checkpoint("the base", request.base), request.weight_files
    paths, told = packs_of_adapters(stack, base, list(as_paths("packs", packs)), request.scratch, weight_files=weights, workers=workers)
    readers = [stack.enter_context(PackReader(path)) for path in paths]
    base_ckpt = arranged_base(base_ckpt, readers)
    rows = _united(base_ckpt, readers, donor) if choices.vocab == "union" else _owner("vocab", choices.vocab, packs)
    weighted, composition = compose_recipe(base_ckpt, readers, recipe, prefer=preferred, assets=donor, vocab=rows, dtype=dtype)
    files = _files(base_ckpt, composition.assets, rows) if isinstance(rows, Vocabulary) else {}
    composition, fitting = fit_head(base_ckpt, readers, composition, preferred, files)
    files |= fitting
    layers = Layers.of(base_ckpt.tensors)
    return MergePlan(base_ckpt, tuple(weighted), recipe, layers, composition, preferred, rows, files, donor, tuple(told))


def _united(base: Checkpoint, readers: Sequence[PackReader], donor: int | Literal["base"] | None) -> Vocabulary:
    """Return the vocabulary of all packs; the new tokens of the donor of side files come first, as its files name their ids.

    Raises:
        BaseMismatchError: A pack was made from another base.
        CheckpointError: A tokenizer.json is damaged.
        MergeConflictError: The vocabularies cannot be united.
    """
    check_base(base, readers)
    growth, of_base = growth_of(base, readers), read_side_file(base, None, TOKENIZER)
    data = [None if reader.index.files is None else read_side_file(base, reader, TOKENIZER) for reader in readers]
    if of_base is None:
        if any(found is not None for found in data) or growth.packs:
            hint = "Give the folder of the base, with its tokenizer.json."
            raise MergeConflictError("nobody says which tokens are new: the base has no tokenizer.json", path=base.path, hint=hint)
        return Vocabulary()
    own, paths = parse_tokenizer(of_base, base.path / TOKENIZER), [reader.path for reader in readers]
    tokenizers = [
        own if found == of_base else None if found is None else parse_tokenizer(found, path / TOKENIZER)
        for found, path in zip(data, paths, strict=True)
    ]
    return unite(own, tokenizers, growth, paths, donor if isinstance(donor, int) else None)


def _files(base: Checkpoint, assets: PackReader | None, vocabulary: Vocabulary) -> dict[str, bytes]:
    """Return the side files that a united vocabulary changes."""
    if not vocabulary.changed and vocabulary.size is None:
        return {}
    where = base.path if assets is None else assets.path
    return files_with(vocabulary.added, vocabulary.changed, vocabulary.size, lambda name: read_side_file(base, assets, name), where)


def compose_recipe(
    base: BaseTensors,
    readers: Sequence[PackReader],
    recipe: MergeRecipe,
    *,
    prefer: int | None = None,
    assets: int | Literal["base"] | None = None,
    vocab: Vocab | None = None,
    dtype: DType | None = None,
) -> tuple[list[WeightedPack], Composition]:
    """Return packs with the weights that a recipe gives them, and what each tensor will be made of.

    Raises:
        BaseMismatchError: A pack was made from another base.
        FormatError: The header of a pack is damaged.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
        RecipeError: The recipe does not fit the packs.
    """
    refuse_unused_rules(recipe, base)
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
        if as_pack("a pack", pack).resolve() == as_pack(what, chosen).resolve():
            return position
    raise RecipeError(f"the pack that {what} names is not among the packs", found=chosen)
