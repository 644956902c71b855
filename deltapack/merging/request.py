"""What a merge is asked for: base, packs, recipe, and which pack decides on what cannot be added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltapack.checking import as_checkpoint, as_path, as_paths
from deltapack.errors import RecipeError
from deltapack.merging.recipe import MergeRecipe

__all__ = ["MergeChoices", "MergeRequest"]


@dataclass(frozen=True)
class MergeChoices:
    """Which pack decides on what cannot be added; each of them is one of the packs that are merged.

    Attributes:
        prefer: The pack that decides on tensors that cannot be added, and on side files.
        assets: The pack that config, tokenizer and chat template are from, if not `vocab` or `prefer`; or `"base"`.
        vocab: The pack whose rows tensors have that packs grew, or `"base"`, or `"union"` for the new tokens of all packs; the only
            pack that grew them unless given.
    """

    prefer: str | Path | None = None
    assets: str | Path | None = None
    vocab: str | Path | None = None


@dataclass(frozen=True)
class MergeRequest:
    """A merge, wherever its result goes; the arguments that `merge`, `preview_merge`, `explain_merge` and `survey_merge` share.

    Attributes:
        base: The base.
        packs: The packs, in order of addition.
        recipe: How to merge.
        choices: Which pack decides.
        weight_files: Which weights of the base count where its folder has one file and an index of shards that differ.
        scratch: A folder for the packs of adapters while it runs; the system's one for temporary files unless given.

    Raises:
        RecipeError: An argument is of another type.
    """

    base: str | Path
    packs: Sequence[str | Path]
    recipe: MergeRecipe
    choices: MergeChoices = field(default_factory=MergeChoices)
    weight_files: str | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", as_checkpoint("the base", self.base))
        object.__setattr__(self, "packs", as_paths("packs", self.packs))  # which may be read only once
        if not isinstance(self.recipe, MergeRecipe):
            hint = "Make one with deltapack.MergeRecipe or deltapack.read_merge_file."
            raise RecipeError("recipe is not a MergeRecipe", found=repr(self.recipe)[:60], hint=hint)
        for name, chosen in vars(self.choices).items():
            if chosen is not None:
                as_path(name, chosen)
