"""Works in plain torch operations, chunk by chunk: any device that torch knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deltapack.device import torch_kernels
from deltapack.device.exact_work import ExactWork, save
from deltapack.device.regions import Region
from deltapack.device.torch_decoding import decode_chunk
from deltapack.device.torch_exact import decode_exact
from deltapack.device.work import Saved, SavedCopy, UndoMode, Work, by_region
from deltapack.format.digest import CHUNK

__all__ = ["TorchEngine"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class _SavedElements:
    """Replaced elements and their places, piece by piece."""

    region: Region
    pieces: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for piece in self.pieces for part in piece)

    def put_back(self) -> None:
        for places, elements in self.pieces:
            self.region.put(places.to(torch.int64), elements)


class TorchEngine:
    """See `deltapack.device.engine.Engine`."""

    name = "torch"

    def switch(self, undo: Sequence[Saved], works: Sequence[Work | ExactWork], mode: UndoMode, done: list[Saved]) -> None:
        """See `deltapack.device.engine.Engine.switch`."""
        with torch.no_grad():
            before = by_region(undo)
            for work in works:
                earlier = before.pop(work.region.key, [])
                if isinstance(work, ExactWork):
                    save(work, mode, earlier, done)
                    elements = work.elements()
                    decode_exact(elements, work.exact)
                    work.give_back(elements)
                    continue
                for saved in earlier:
                    saved.put_back()
                _do(work, mode, earlier, done)
            for rest in before.values():
                for saved in rest:
                    saved.put_back()


def _do(work: Work, mode: UndoMode, earlier: Sequence[Saved], done: list[Saved]) -> None:
    log = None
    place = torch.int32 if work.region.memory.numel() <= torch.iinfo(torch.int32).max else torch.int64
    if work.saves_copy(mode, place.itemsize):
        done.append(SavedCopy.of(work.region, earlier))
    elif mode != "nothing":
        log = _SavedElements(work.region)
        done.append(log)
    for chunk in work.region.chunks:
        common = work.terms[0][0].ready.entry.common
        if chunk * CHUNK >= common:
            break
        terms = [decode_chunk(term, chunk, factor) for term, factor in work.terms]
        positions, total = torch_kernels.sum_terms(min(CHUNK, common - chunk * CHUNK), terms)
        places, inside = work.region.find(positions + chunk * CHUNK)
        total = total if inside is None else total[inside]
        old = work.region.take(places)
        if work.source is None:
            result = torch_kernels.add_sparse(old, work.dtype, work.dtype, total)
        else:
            source, dtype = work.source
            result = torch_kernels.add_sparse(source.take(places), dtype, work.dtype, total)
        if log is not None:
            log.pieces.append((places.to(place), old))
        work.region.put(places, result)
