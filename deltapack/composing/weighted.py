"""A pack with the weight that it is applied with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deltapack.checking import as_number
from deltapack.errors import RecipeError
from deltapack.format.blobs import EXACT
from deltapack.format.index import Term
from deltapack.format.reader import PackReader

__all__ = ["WeightedPack"]


@dataclass(frozen=True)
class WeightedPack:
    """A pack and what it is applied with.

    Attributes:
        reader: The pack.
        weight: Factor for all its differences.
        rescale: What replaces the factors of terms that do not keep all elements; where they do, nothing was dropped.
        by_tensor: Weights of single base tensors, by name.
    """

    reader: PackReader
    weight: float = 1.0
    rescale: float | None = None
    by_tensor: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("rescale", self.rescale), *(("weight", value) for value in self.by_tensor.values())):
            number = 0.0 if value is None and name == "rescale" else as_number(name, value, path=self.reader.path)
            if not (math.isfinite(number) and abs(number) < 3e38):
                raise RecipeError(f"{name} is not a finite f32", path=self.reader.path, found=value)
        if self.rescale is not None and self.rescale <= 0:
            hint = "--weight 0 gives the base." if self.rescale == 0 else "--weight takes negative factors."
            raise RecipeError("rescale is out of range", path=self.reader.path, expected="above 0", found=self.rescale, hint=hint)
        index = self.reader.index
        # Factors of a merged pack hold its weights, which a rescale would wipe out, be it of a single pack.
        is_merged = "packs" in index.recipe or any(sum(not term.is_factors for term in entry.terms) > 1 for entry in index.entries)
        if self.rescale is not None and is_merged:
            hint = "Rescale the packs that it was merged from."
            raise RecipeError("a merged pack cannot be rescaled", path=self.reader.path, hint=hint)
        if self.rescale is not None and EXACT in index.required and index.is_exact:
            what, hint = "rescale does nothing: an exact pack drops nothing", "Leave it out; --weight scales the difference."
            raise RecipeError(what, path=self.reader.path, found=self.rescale, hint=hint)

    @property
    def is_plain(self) -> bool:
        """Whether the pack's own digests describe the result."""
        return self.rescale is None and self.weight == 1 and all(weight == 1 for weight in self.by_tensor.values())

    def weight_of(self, tensor: str) -> float:
        """Return the weight for a base tensor."""
        return self.by_tensor.get(tensor, self.weight)

    def factor(self, term: Term, weight: float | None = None) -> np.float32:
        """Return the factor of a term times a weight, the pack's own unless given (spec/06-arithmetic.md section 6.1)."""
        own = self.rescale is None or term.index_codec.kept == "all"
        with np.errstate(over="ignore"):
            return np.float32(term.factor if own else self.rescale) * np.float32(self.weight if weight is None else weight)
