"""Works in plain torch operations, chunk by chunk: any device that torch knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deltapack.codecs import values
from deltapack.device import torch_kernels
from deltapack.device.exact_work import ExactWork, save
from deltapack.device.ready import KINDS
from deltapack.device.regions import Region
from deltapack.device.resident import ResidentTerm
from deltapack.device.torch_exact import decode_exact
from deltapack.device.work import Saved, SavedCopy, UndoMode, Work, by_region
from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, TILES_PER_CHUNK
from deltapack.format.table import tile_lengths

__all__ = ["TorchEngine", "decode_chunk", "wrong_count"]

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


def decode_chunk(resident: ResidentTerm, chunk: int, factor: float) -> tuple[Tensor, Tensor]:
    """Return the positions `[nnz] int64`, from the start of the chunk, and values `[nnz] f32` of a chunk of a term.

    Raises:
        FormatError: A seeded mask keeps another number of elements than its table says (rule R9).
    """
    term, rows = resident.ready.term, slice(chunk * TILES_PER_CHUNK, (chunk + 1) * TILES_PER_CHUNK)
    kind, kept, items = (resident.column(name)[rows] for name in ("kind", "count", "items"))
    segment = resident.segments[int(resident.column("segment")[rows][0])]
    index, codes, scales = (int(resident.column(name)[rows][0]) for name in ("index", "codes", "scales"))
    nnz, counts = int(kept.sum()), torch.from_numpy(kept.copy()).to(segment.device)
    lengths = tile_lengths(min(CHUNK, resident.ready.entry.common - chunk * CHUNK))
    if kind[0] == KINDS["seeded"]:
        positions, found = torch_kernels.sample_positions(term.key, term.keep, chunk * TILES_PER_CHUNK, lengths, segment.device)
        if not torch.equal(found, counts):
            raise wrong_count(resident)
    elif kind[0] == KINDS["bitmap"]:
        positions = torch_kernels.positions_from_bits(segment[index : index + (sum(lengths) + 7) // 8], sum(lengths))
    elif kind[0] == KINDS["all"]:
        positions = torch.arange(nnz, device=segment.device)
    else:
        wide = kind[0] == KINDS["wide gaps"]
        gaps = segment[index : index + int(items.sum()) * (2 if wide else 1)]
        gaps = gaps.view(torch.int16).to(torch.int32) & 0xFFFF if wide else gaps
        positions = torch_kernels.positions_from_gaps(gaps, torch.from_numpy(items.copy()).to(segment.device), escapes=not wide)
    packed = segment[codes : codes + values.codes_raw_length(term.values, nnz)]
    scale_bytes = values.scales_raw_length(kept) if term.value_codec.scaled else 0
    return positions, torch_kernels.decode_values(term.values, packed, segment[scales : scales + scale_bytes], counts, nnz, factor)


def wrong_count(resident: ResidentTerm) -> FormatError:
    """Return the error for a seeded mask that keeps another number of elements than its table says."""
    return FormatError(
        f"the {resident.ready.term.index} index keeps another number of elements than the table says",
        path=resident.ready.path,
        tensor=resident.ready.entry.name,
        rule="R9",
    )
