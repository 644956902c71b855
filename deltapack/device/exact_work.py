"""What a device is asked to do with a tensor that a pack codes exactly, and what undoes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deltapack.device.exact_ready import ReadyChunk
from deltapack.device.exact_resident import ResidentExact
from deltapack.device.regions import Region
from deltapack.device.torch_exact import chunk_numbers, places_of
from deltapack.device.work import Saved, SavedCopy, UndoMode
from deltapack.dtypes import DType

__all__ = ["ExactWork", "save"]


@dataclass(frozen=True)
class ExactWork:
    """A tensor to decode over its base.

    Attributes:
        region: Where the base is, the whole of it, in the type of the tensor.
        dtype: Type of the elements.
        exact: The tensor.
    """

    region: Region
    dtype: DType
    exact: ResidentExact

    def elements(self) -> torch.Tensor:
        """Return the elements of the region, `[numel]` and contiguous: a view, or a copy where they lie in memory otherwise."""
        return self.region.memory.reshape(-1)

    def give_back(self, elements: torch.Tensor) -> None:
        """Write elements that were decoded to the region, where they are no view of it."""
        if self.region.sliced:
            self.region.memory.copy_(elements.view(self.region.memory.shape))


@dataclass(frozen=True)
class _SavedNumbers:
    """What the numbers were that are given anew: those of the base, whichever step replaces them first.

    Attributes:
        work: What was done.
        pieces: For each chunk its numbers; where `sparse`, only those that its only step gives.
    """

    work: ExactWork
    pieces: list[tuple[ReadyChunk, bool, torch.Tensor]] = field(default_factory=list)

    @property
    def region(self) -> Region:
        return self.work.region

    @property
    def nbytes(self) -> int:
        return sum(numbers.numel() * numbers.element_size() for _, _, numbers in self.pieces)

    def put_back(self) -> None:
        memory, exact = self.work.elements(), self.work.exact
        for chunk, is_sparse, numbers in self.pieces:
            held = chunk_numbers(memory, exact, chunk)
            if is_sparse:
                held[places_of(exact, chunk)] = numbers
            else:
                held.copy_(numbers)


def save(work: ExactWork, mode: UndoMode, earlier: Sequence[Saved], done: list[Saved]) -> None:
    """Put back what earlier works replaced in a region, then save what a work will replace.

    Args:
        work: What will be done.
        mode: How it is saved. A log has all numbers of chunks that are coded densely, or by several steps.
        earlier: What undoes earlier works in the region.
        done: Gets what undoes the work.
    """
    for saved in earlier:
        saved.put_back()
    if mode == "nothing":
        return
    if mode == "copy" or work.region.sliced or any(isinstance(saved, SavedCopy) for saved in earlier):
        done.append(SavedCopy.of(work.region, earlier))
        return
    saved_numbers = _SavedNumbers(work)
    memory, steps = work.elements(), work.exact.ready.steps
    times = Counter(chunk.number for step in steps for chunk in step)
    for chunk in {chunk.number: chunk for step in steps for chunk in step}.values():
        held, is_sparse = chunk_numbers(memory, work.exact, chunk), bool(chunk.changed.nbytes) and times[chunk.number] == 1
        saved_numbers.pieces.append((chunk, is_sparse, held[places_of(work.exact, chunk)] if is_sparse else held.clone()))
    done.append(saved_numbers)
