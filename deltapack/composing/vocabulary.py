"""One vocabulary from several packs that added tokens: every token once, with one id and one row.

The ids of the base stay. A pack may name rows that the base has without a token (reserved, or padding); such rows are merged like any
other. Rows that a pack added are taken whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from deltapack.checkpoint import TensorInfo
from deltapack.composing.basecheck import BaseTensors
from deltapack.composing.parts import WHOLE
from deltapack.composing.tensor_job import FromPack, StoredRows, TensorJob, UnitedRows
from deltapack.composing.tokenizer_files import AddedToken, Tokenizer
from deltapack.errors import MergeConflictError
from deltapack.format.index import Entry
from deltapack.format.reader import PackReader

__all__ = ["Growth", "Vocabulary", "growth_of", "unite"]

_WAY_OUT = "--vocab PACK takes the new rows of one pack alone."


@dataclass(frozen=True)
class Growth:
    """By how much packs grew the tensors that have a row for each token.

    Attributes:
        rows: Rows of the base; `None`: no pack has more.
        packs: Rows of each pack that has more, by its number.
    """

    rows: int | None = None
    packs: Mapping[int, int] = field(default_factory=dict)


def growth_of(base: BaseTensors, packs: Sequence[PackReader]) -> Growth:
    """Return by how much packs grew, which must be the same for all their tensors that any pack grew.

    Raises:
        MergeConflictError: A pack grew only some of them, or stores the rows of the base with its own.
    """
    entries = [_by_base_name(base, pack) for pack in packs]
    names = sorted({name for own in entries for name, entry in own.items() if entry.kind == "grown"})
    if not names:
        return Growth()
    start, grown = base.tensors[names[0]].shape[0], dict[int, int]()
    for number, (pack, own) in enumerate(zip(packs, entries, strict=True)):
        rows = next((own[name].shape[0] for name in names if name in own and own[name].kind == "grown"), None)
        for name in names:
            _check_tensor(pack.path, base.tensors[name], start, own.get(name), rows)
        if rows is not None:
            grown[number] = rows
            for entry in pack.index.entries:
                if entry.kind in WHOLE and entry.shape[:1] == (rows,):
                    what = "the pack stores old and new rows together, as a tensor of its own"
                    raise _conflict(what, pack.path, tensor=entry.name, expected="new rows after those of the base")
    return Growth(start, grown)


def _by_base_name(base: BaseTensors, pack: PackReader) -> dict[str, Entry]:
    out: dict[str, Entry] = {}
    for entry in pack.index.entries:
        if entry.base is not None:
            name = base.aliases.get(entry.base.name, entry.base.name)
            if name in out and "grown" in (entry.kind, out[name].kind):
                what = "the pack grew a tied tensor and made two of it"
                raise _conflict(what, pack.path, tensor=entry.name, found=f"{out[name].name!r}, too")
            out[name] = entry
    return out


def _check_tensor(path: Path, tensor: TensorInfo, start: int, entry: Entry | None, rows: int | None) -> None:
    """Check what a pack says of a tensor that some pack grew: it has `rows` where the pack grew anything, else those of the base."""
    if tensor.shape[0] != start:
        what = "packs grew tensors that have different numbers of rows in the base"
        raise _conflict(what, path, tensor=tensor.name, expected=f"{start} rows", found=f"{tensor.shape[0]} rows")
    article = "an" if entry is not None and entry.kind == "exact" else "a"
    found = "no such tensor" if entry is None else f"{article} {entry.kind} tensor of shape {list(entry.shape)}"
    if rows is not None and (entry is None or entry.kind != "grown" or entry.shape[0] != rows):
        what = "the pack grew another tensor, and this one otherwise or not at all"
        raise _conflict(what, path, tensor=tensor.name, expected=f"a grown tensor of {rows} rows", found=found)
    if rows is None and entry is not None and entry.kind in ("shrunk", *WHOLE) and entry.shape != tensor.shape:
        what = "a pack that grew no tensor has another shape"
        raise _conflict(what, path, tensor=tensor.name, expected=f"{start} rows", found=found)


@dataclass(frozen=True)
class Vocabulary:
    """A united vocabulary.

    Attributes:
        rows: Rows of the base; `None`: no pack grew them, and neither does the result.
        added: All added tokens by their ids.
        changed: Those of them that the base lacks or has otherwise.
        places: For each pack that has new rows, which row of its tensors each new row of the result is; -1 where it lacks the token.
        new: Number of new rows.
        donor: The first pack that brings a token, whose files fit the result best.
        notes: What the user should be told.
    """

    rows: int | None = None
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    changed: Mapping[int, AddedToken] = field(default_factory=dict)
    places: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    new: int = 0
    donor: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Rows of the result; `None`: as many as before."""
        return None if self.rows is None else self.rows + self.new

    def grow(self, job: TensorJob, stored: Mapping[int, StoredRows]) -> TensorJob:
        """Return a job over the rows of the base with the new rows after them, out of what packs store (by their numbers).

        Raises:
            MergeConflictError: The result has a pack's own tensor instead, which has no rows for new tokens.
        """
        if not self.new:
            return job
        if isinstance(job.source, FromPack) or job.source.exact is not None:
            what, found = "the preferred pack stores the tensor whole, and others add rows to it", f"{job.dtype} {list(job.shape)}"
            raise MergeConflictError(what, path=job.pack, tensor=job.name, expected=f"{self.size} rows", found=found, hint=_WAY_OUT)
        owners = tuple((stored[number], np.array(places, np.int64)) for number, places in self.places.items())
        shape = (job.shape[0] + self.new, *job.shape[1:])
        rows = UnitedRows(job.dtype, job.numel, prod(job.shape[1:]), owners)
        return replace(job, shape=shape, source=replace(job.source, rows=rows), digest="")


def unite(
    base: Tokenizer, packs: Sequence[Tokenizer | None], growth: Growth, paths: Sequence[Path], first: int | None = None
) -> Vocabulary:
    """Unite the tokens of packs: those of the base keep their ids, new ones follow by pack and id without gaps.

    Args:
        base: Tokens of the base.
        packs: Tokens of each pack; `None` where a pack has no tokenizer.
        growth: Which packs have rows of their own for new tokens.
        paths: The packs' files, for messages.
        first: The pack whose new tokens come first, so that they keep their ids; the first one that brings some unless given.

    Raises:
        MergeConflictError: Packs say different things of one id or token, or it is not clear which row a token has.
    """
    known, start = base.ids(), growth.rows
    if start is not None and max(known.values(), default=-1) >= start:
        raise _conflict("the base has a token without a row", base.where, expected=f"ids below {start}", found=max(known.values()))
    said: list[dict[int, AddedToken]] = []
    for number, (tokenizer, path) in enumerate(zip(packs, paths, strict=True)):
        if tokenizer is None and number in growth.packs:
            raise _conflict("the pack has rows for new tokens, but no tokenizer.json that names them", path)
        said.append({} if tokenizer is None else _changes(base, known, tokenizer, growth.packs.get(number, start), path))
    bringing = [number for number, tokens in enumerate(said) if any(token.content not in known for token in tokens.values())]
    donor = bringing[0] if bringing else None
    leading = donor if first is None else first
    ids = _ids(said, start, paths, sorted(range(len(said)), key=lambda number: number != leading))
    changed, unlike = dict[int, AddedToken](), dict[str, None]()
    for token in (token for tokens in said for _, token in sorted(tokens.items())):
        if changed.setdefault(ids[token.content], token) != token:
            unlike[token.content] = None
    fresh = [content for content, key in ids.items() if start is not None and key >= start]
    rows = [{token.content: key for key, token in tokens.items()} for tokens in said]
    places = {number: tuple(rows[number].get(content, -1) for content in fresh) for number in growth.packs}
    notes = _notes(growth, places, len(fresh), paths, list(unlike))
    return Vocabulary(start, {**base.added, **changed}, changed, places, len(fresh), donor, notes)


def _changes(base: Tokenizer, known: Mapping[str, int], own: Tokenizer, rows: int | None, path: Path) -> dict[int, AddedToken]:
    """Return the added tokens of a pack that the base lacks or has otherwise, by their ids in the pack.

    Raises:
        MergeConflictError: The pack has other words than the base, a base's token elsewhere, or tokens whose row is not clear.
    """
    if own.words != base.words:
        what = "the pack's tokenizer has other words than the base's, and only added tokens can be united"
        raise _conflict(what, path, expected=f"the {len(base.words)} words of {base.where}", found=f"{len(own.words)} words")
    words, taken = set(base.words.values()), {*own.words.values(), *own.added}
    changes = {key: token for key, token in own.added.items() if base.added.get(key) != token}
    for key, token in changes.items():
        there = known.get(token.content)
        if there is None and key in words:
            raise _conflict("an added token has the id of a word", path, found=f"{token.content!r} with id {key}")
        if there is not None and there != key:
            raise _conflict(f"the token {token.content!r} has another id than in the base", path, expected=there, found=key)
        if rows is not None and key >= rows:
            raise _conflict(f"the token {token.content!r} has no row", path, expected=f"an id below {rows}", found=key)
        if there is None and key and key - 1 not in taken:
            # Tokenizers number added tokens on from the last one, whatever the file says: the row would be another token's.
            what = f"the ids leave a gap before the token {token.content!r}, which tokenizers close"
            raise _conflict(what, path, expected=f"a token with id {key - 1}", found=f"id {key}")
    return changes


def _ids(said: Sequence[Mapping[int, AddedToken]], start: int | None, paths: Sequence[Path], order: Sequence[int]) -> dict[str, int]:
    """Return the id of each token that packs bring or change; the new ones in the order of their ids.

    Raises:
        MergeConflictError: A row of the base would have two tokens, or a token two rows.
    """
    rows = [(number, key, token.content) for number in order for key, token in sorted(said[number].items())]
    ids, holders = dict[str, int](), dict[int, tuple[str, int]]()
    for number, key, content in rows:
        if start is None or key < start:
            held, other = holders.setdefault(key, (content, number))
            if held != content:
                what = f"packs use row {key} of the base for different tokens"
                raise _conflict(what, paths[number], expected=f"{held!r}, as in {paths[other]}", found=repr(content))
            if ids.setdefault(content, key) != key:
                raise _conflict(f"packs use different rows for the token {content!r}", paths[number], expected=ids[content], found=key)
    new = dict[str, int]()
    for number, key, content in rows:
        if start is not None and key >= start:
            if content in ids:
                what = f"the token {content!r} has a new row here, and a row of the base in another pack"
                raise _conflict(what, paths[number], expected=f"id {ids[content]}", found=f"id {key}")
            new.setdefault(content, start + len(new))
    return ids | new


def _notes(growth: Growth, places: Mapping[int, Sequence[int]], new: int, paths: Sequence[Path], unlike: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if new and growth.rows is not None:
        counts = ", ".join(f"{sum(place >= 0 for place in own):,} of {paths[number].name}" for number, own in places.items())
        notes.append(f"the vocabulary has {new:,} new tokens, with ids from {growth.rows:,}: {counts}")
    for number, rows in growth.packs.items():
        spare = rows - (growth.rows or 0) - sum(place >= 0 for place in places[number])
        if spare:
            notes.append(f"{spare:,} new rows of {paths[number].name} have no token and are left out")
    if unlike:
        more = f" and {len(unlike) - 1} more" if len(unlike) > 1 else ""
        notes.append(f"packs disagree on how text is searched for {unlike[0]!r}{more}; the first pack decides")
    return tuple(notes)


def _conflict(what: str, path: Path, *, tensor: str | None = None, expected: object = None, found: object = None) -> MergeConflictError:
    return MergeConflictError(what, path=path, tensor=tensor, expected=expected, found=found, hint=_WAY_OUT)
