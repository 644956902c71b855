"""What one pack says of one tensor, and what decides where packs say different things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltapack.checkpoint import TensorInfo
from deltapack.codecs.chunk import term_chunks
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.codecs.stored import stored_chunks
from deltapack.composing.tensor_job import FromBase, FromPack, OwnTerm, PackTerm, StoredRows, StoredTerm, TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.errors import MergeConflictError
from deltapack.format.index import Entry

__all__ = ["WHOLE", "Chooser", "Part", "adds", "name_of", "rows_of", "terms_of", "whole_job"]

WHOLE = ("exact", "stored")
"""Kinds of entries that say what all elements are, and not what is added to them."""


@dataclass(frozen=True)
class Part:
    """What one pack says of one tensor."""

    pack: WeightedPack
    number: int
    entry: Entry

    @property
    def is_structural(self) -> bool:
        """Whether it does more than add: new rows, fewer rows, or a tensor stored whole."""
        return self.entry.kind in ("grown", "shrunk", *WHOLE)


@dataclass(frozen=True)
class Chooser:
    """Decides between parts that cannot be added."""

    preferred: WeightedPack | None

    def one(self, parts: Sequence[Part]) -> Part:
        """Return the part that decides.

        Raises:
            MergeConflictError: The parts differ and none of them is the preferred pack's.
        """
        if len({part.entry.digest for part in parts}) == 1:
            return parts[0]
        for part in parts:
            if part.pack is self.preferred:
                return part
        growing = all(part.entry.kind == "grown" for part in parts)
        raise MergeConflictError(
            "packs disagree on a tensor that cannot be added (new, integer, of another shape, or with new rows)",
            tensor=parts[0].entry.name,
            found=" and ".join(str(part.pack.reader.path) for part in parts),
            hint="Say which pack decides with --prefer PACK." + (" --vocab union takes the new tokens of all." if growing else ""),
        )


def whole_job(part: Part, based: FromBase | None) -> TensorJob | None:
    """Plan a tensor that a pack stores whole or codes exactly; `None` where it does not. `based`: its base tensor as it is."""
    entry, rows = part.entry, rows_of(part)
    if entry.kind not in WHOLE or rows is None:
        return None
    source: FromBase | FromPack = FromPack(entry, rows)
    if based is not None and entry.partner is not None and isinstance(rows, ExactTensor):
        source = replace(based, exact=rows)
    return TensorJob(entry.name, entry.dtype, entry.shape, source, entry.digest, part.pack.reader.path)


def adds(part: Part, tensor: TensorInfo) -> bool:
    """Whether a tensor that is stored whole can be seen as a difference to the base."""
    entry = part.entry
    return entry.kind in WHOLE and entry.shape == tensor.shape and entry.dtype.is_delta and tensor.dtype.is_delta


def terms_of(part: Part, tensor: TensorInfo, weight: float) -> Iterator[OwnTerm]:
    """Yield what a part adds to a tensor of the base."""
    entry, reader = part.entry, part.pack.reader
    if entry.kind in WHOLE:
        rows = rows_of(part)
        if rows is not None:
            yield StoredTerm(rows, np.float32(weight))
    for term in entry.terms:
        yield PackTerm(reader, term, term_chunks(reader, entry, term), part.pack.factor(term, weight))


def rows_of(part: Part) -> StoredRows | ExactTensor | None:
    """Return what a part holds whole: all of a tensor, or the rows after the common ones; none where it only adds."""
    entry, reader = part.entry, part.pack.reader
    if entry.exact:
        return ExactTensor.of(reader, entry)
    if entry.stored is None:
        return None
    return StoredRows(reader, entry.stored, stored_chunks(reader, entry, entry.stored), entry.dtype, entry.common)


def name_of(base_name: str, parts: Sequence[Part], chooser: Chooser) -> str:
    """The name that the packs agree on, else the preferred pack's, else the base's."""
    names = {part.entry.name for part in parts} or {base_name}
    if len(names) == 1:
        return names.pop()
    return next((part.entry.name for part in parts if part.pack is chooser.preferred), base_name)
