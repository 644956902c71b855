"""The decode-ready form of a pack in the memory of a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.device.exact_ready import lay_out_exact
from deltapack.device.exact_resident import ResidentExact
from deltapack.device.ready import COLUMNS, ReadyTerm, lay_out
from deltapack.device.segments import SEGMENT_BYTES
from deltapack.device.sending import Sender
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader

__all__ = ["ROWS", "ResidentPack", "ResidentTerm", "send"]

ROWS = ("kind", "count", "items", "index", "codes", "first", "scales", "before")
"""Columns of the table of a resident term: see `deltapack.device.ready.COLUMNS`, with addresses in place of segments and offsets."""
_OFFSETS = ("index", "codes", "scales")


@dataclass(frozen=True)
class ResidentTerm:
    """A term whose streams lie in the memory of a device; see `deltapack.device.ready.ReadyTerm`.

    Attributes:
        ready: What was sent.
        segments: Where its streams lie.
        rows: `[tiles, 8] int64` on the device, see `ROWS`.
    """

    ready: ReadyTerm
    segments: tuple[torch.Tensor, ...]
    rows: torch.Tensor

    def column(self, name: str) -> NDArray[np.int64]:
        """Return a column of its table, `[tiles] int64`."""
        return self.ready.table[:, COLUMNS.index(name)]

    def part(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return what all its tiles read, `[n]`, as a view of the numbers that it is of."""
        segment, offset, nbytes = self.ready.parts[name]
        return self.segments[segment][offset : offset + nbytes].view(dtype)

    def address(self, name: str) -> int:
        """Return the address of such a part; 0 where there is none."""
        stream = self.ready.parts.get(name)
        return 0 if stream is None else self.segments[stream.segment].data_ptr() + stream.offset


@dataclass(frozen=True)
class ResidentPack:
    """A pack in the memory of a device.

    Attributes:
        device: Which.
        terms: Its terms.
        exact: Its tensors that are restored bit for bit from a base, by name.
        nbytes: Bytes that were sent, which is what it occupies there.
    """

    device: torch.device
    terms: dict[Term, ResidentTerm]
    exact: dict[str, ResidentExact]
    nbytes: int


def send(
    reader: PackReader, device: torch.device, workers: int, entries: Iterable[Entry] | None = None, segment_bytes: int = SEGMENT_BYTES
) -> ResidentPack:
    """Lay out the terms and exact tensors of a pack and send them to a device, in large pieces and while later ones are decoded.

    Args:
        reader: The pack.
        device: Where to. On the CPU nothing is copied once more.
        workers: Threads that decode.
        entries: Which entries; all unless given.
        segment_bytes: Bytes of a piece.

    Raises:
        FormatError: A rule from R8 to R10 is broken.
    """
    sender = Sender(device, segment_bytes)
    wanted = reader.index.entries if entries is None else tuple(entries)
    ready = list(lay_out(reader, wanted, sender.segments, workers))
    whole = list(lay_out_exact(reader, wanted, sender.segments, workers))
    everything = sender.finish()
    rows = torch.from_numpy(_rows(ready, everything)).to(device)
    ends = np.cumsum([len(term.table) for term in ready])
    parts = [rows[end - len(term.table) : end] for term, end in zip(ready, ends, strict=True)]
    terms = {term.term: ResidentTerm(term, everything, part) for term, part in zip(ready, parts, strict=True)}
    exact = {tensor.name: ResidentExact(tensor, everything) for tensor in whole}
    return ResidentPack(device, terms, exact, sum(tensor.nbytes for tensor in (*everything, rows)))


def _rows(ready: Sequence[ReadyTerm], segments: Sequence[torch.Tensor]) -> NDArray[np.int64]:
    """Return the tables of terms, one after the other, `[tiles, 8] int64`; see `ROWS`."""
    table = np.concatenate([np.zeros((0, len(COLUMNS)), np.int64), *(term.table for term in ready)])
    starts = np.array([segment.data_ptr() for segment in segments] or [0], np.int64)[table[:, COLUMNS.index("segment")]]
    rows = np.empty((len(table), len(ROWS)), np.int64)
    for number, name in enumerate(ROWS):
        rows[:, number] = table[:, COLUMNS.index(name)] + (starts if name in _OFFSETS else 0)
    return rows
