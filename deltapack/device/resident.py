"""The decode-ready form of a pack in the memory of a device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.device.ready import COLUMNS, SEGMENT_BYTES, ReadyTerm, Segments, lay_out
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader

__all__ = ["ResidentPack", "ResidentTerm", "send"]


@dataclass(frozen=True)
class ResidentTerm:
    """A term whose streams lie in the memory of a device; see `deltapack.device.ready.ReadyTerm`."""

    ready: ReadyTerm
    segments: tuple[torch.Tensor, ...]

    def column(self, name: str) -> NDArray[np.int64]:
        """Return a column of its table, `[tiles] int64`."""
        return self.ready.table[:, COLUMNS.index(name)]

    def addresses(self, column: str) -> NDArray[np.int64]:
        """Return the addresses `[tiles] int64` that a column of offsets stands for."""
        starts = np.array([segment.data_ptr() for segment in self.segments] or [0], np.int64)
        return starts[self.column("segment")] + self.column(column)

    @property
    def thresholds(self) -> int:
        """Address of its gap table; 0 without one."""
        segment, offset = self.ready.thresholds
        return self.segments[segment].data_ptr() + offset if self.ready.term.index_codec.kept == "random" else 0


@dataclass(frozen=True)
class ResidentPack:
    """A pack in the memory of a device.

    Attributes:
        device: Which.
        terms: Its terms.
        nbytes: Bytes that were sent, which is what it occupies there.
    """

    device: torch.device
    terms: dict[Term, ResidentTerm]
    nbytes: int


def send(
    reader: PackReader, device: torch.device, workers: int, entries: Iterable[Entry] | None = None, segment_bytes: int = SEGMENT_BYTES
) -> ResidentPack:
    """Lay out the terms of a pack and send them to a device, in large pieces and while later ones are decoded.

    Args:
        reader: The pack.
        device: Where to. On the CPU nothing is copied once more.
        workers: Threads that decode.
        entries: Whose terms; all unless given.
        segment_bytes: Bytes of a piece.

    Raises:
        FormatError: A rule from R8 to R10 is broken.
    """
    sent: list[torch.Tensor] = []
    pinned: list[torch.Tensor] = []

    def allocate(nbytes: int) -> NDArray[np.uint8]:
        # The allocator of pinned memory gives a buffer out again only when the copy from it is done.
        pinned.append(torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda"))
        return pinned[-1].numpy()

    def hand_over(_: NDArray[np.uint8], used: int) -> None:
        buffer = pinned.pop()[:used]
        sent.append(buffer if device.type == "cpu" else buffer.to(device, non_blocking=True))

    segments = Segments(allocate, hand_over, segment_bytes)
    ready = list(lay_out(reader, reader.index.entries if entries is None else entries, segments, workers))
    segments.flush()
    everything = tuple(sent)
    terms = {term.term: ResidentTerm(term, everything) for term in ready}
    return ResidentPack(device, terms, sum(len(segment) for segment in everything))
