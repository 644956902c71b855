"""What a device is asked to do: add terms to regions of memory, and put back what was there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from deltapack.device.regions import Region
from deltapack.device.resident import ResidentTerm
from deltapack.device.tables import WorkRows, rows_of
from deltapack.dtypes import DType

__all__ = ["Saved", "SavedCopy", "UndoMode", "Work", "by_region"]

UndoMode = Literal["auto", "copy", "log", "nothing"]
"""How the replaced elements are kept: those elements only (log), the whole region (copy), whichever is smaller, or not at all."""


@dataclass(frozen=True)
class Work:
    """Terms to add to a region.

    Attributes:
        region: Where the result goes.
        dtype: Type of its elements.
        terms: Terms in order of addition, each with its factor times its pack's weight, an f32 held in a Python float; at least one.
        source: What the sum is added to, and its type; the region itself unless given. The region then holds it already, converted.
    """

    region: Region
    dtype: DType
    terms: tuple[tuple[ResidentTerm, float], ...]
    source: tuple[Region, DType] | None = None

    def saves_copy(self, mode: UndoMode, place_bytes: int = 0) -> bool:
        """Whether the whole region is copied to undo it; a log holds what the terms keep, each with `place_bytes` of its place."""
        if mode != "auto":
            return mode == "copy"
        log_bytes = sum(term.ready.term.nnz for term, _ in self.terms) * (self.dtype.itemsize + place_bytes)
        return log_bytes >= self.region.memory.numel() * self.dtype.itemsize

    @cached_property
    def rows(self) -> WorkRows:
        """What a launch reads of it; the same each time, so it is made once."""
        return rows_of(self.region, self.dtype, self.terms, self.source)


class Saved(Protocol):
    """What undoes a change of a region."""

    @property
    def region(self) -> Region:
        """The region."""

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""

    def put_back(self) -> None:
        """Write what was there before; doing so twice is the same as once."""


@dataclass(frozen=True)
class SavedCopy:
    """A region as it was."""

    region: Region
    copy: torch.Tensor

    @classmethod
    def of(cls, region: Region, earlier: Sequence[Saved] = ()) -> SavedCopy:
        """Copy a region, or take the copy of it that is there: one made `earlier`, of the same content."""
        for saved in earlier:
            if isinstance(saved, SavedCopy):
                return saved
        return cls(region, region.memory.clone(memory_format=torch.contiguous_format))

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return self.copy.numel() * self.copy.element_size()

    def put_back(self) -> None:
        """Write the copy back."""
        self.region.memory.copy_(self.copy)


def by_region(undo: Sequence[Saved]) -> dict[tuple[int, torch.device], list[Saved]]:
    """Group by region."""
    out: dict[tuple[int, torch.device], list[Saved]] = {}
    for saved in undo:
        out.setdefault(saved.region.key, []).append(saved)
    return out
