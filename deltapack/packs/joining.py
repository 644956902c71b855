"""A pack made of exact ones that follow one another: the steps of each tensor behind one another, without decoding them.

A tensor that several packs change starts from the base's and takes all of their steps. One that a pack holds without a partner, as it is
new there, starts anew. What the base's partner would have to be seen as something else for is refused: that takes the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deltapack._version import __version__
from deltapack.codecs.exact_entry import ExactTensor, exact_bytes
from deltapack.codecs.stored import decode_stored_chunk, stored_chunks
from deltapack.composing.basecheck import wrong_base, wrong_result
from deltapack.errors import RecipeError
from deltapack.format.blobs import MOST_STEPS, ExactStep
from deltapack.format.digest import chunk_count, chunk_digest, root_digest
from deltapack.format.features import features_of
from deltapack.format.index import BaseRef, Entry, Index
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter
from deltapack.kernels.layout import Elements
from deltapack.packs.joined_files import join_files, join_heads

__all__ = ["JoinedPack"]

_GIVE_BASE = "Give the base: --base BASE packs what the chain restores anew."


@dataclass(frozen=True)
class _Trace:
    """What packs so far make of a tensor.

    Attributes:
        entry: What the last of them that speaks of it says: type, shape, digest.
        base: The base tensor that it starts from, or is; none where it starts anew.
        steps: Entries that hold steps, in order, with their packs; none where it is the base's, as it is.
        stored: The entry that stores it whole, with its pack.
    """

    entry: Entry
    base: BaseRef | None = None
    steps: tuple[tuple[PackReader, Entry], ...] = ()
    stored: tuple[PackReader, Entry] | None = None


@dataclass(frozen=True)
class JoinedPack:
    """Packs of a chain, and what becomes of each tensor."""

    links: tuple[PackReader, ...]
    traces: Mapping[str, _Trace] = field(repr=False)

    @classmethod
    def of(cls, links: Sequence[PackReader]) -> JoinedPack:
        """Follow every tensor through a chain.

        Raises:
            RecipeError: The base is needed.
        """
        for link in links:
            lossy = next((entry for entry in link.index.entries if entry.terms or entry.kind in ("delta", "grown", "shrunk")), None)
            if lossy is not None:
                raise RecipeError("a pack of the chain is lossy", path=link.path, tensor=lossy.name, found=lossy.kind, hint=_GIVE_BASE)
        traces = _first(links[0])
        for before, link in pairwise(links):
            aliases = {entry.name: entry.of for entry in before.index.entries if entry.kind == "alias"}
            traces = {entry.name: _next(link, entry, traces, aliases) for entry in link.index.entries if entry.in_result}
        return cls(tuple(links), traces)

    def _recipe(self) -> dict[str, Any]:
        return {"method": "exact", "squashed": [{"id": link.pack_id} for link in self.links]}

    def _removed(self) -> list[Entry]:
        """Return an entry for each tensor of the base that the first pack knows and the result does not use, or hide under its name.

        Raises:
            RecipeError: The first pack may hide a tensor of the base that it does not describe.
        """
        index = self.links[0].index
        bases = (entry.base for entry in index.entries if entry.base is not None)
        known = {base.name: base for base in bases if base.arranged is None}
        used = {trace.base.name for trace in self.traces.values() if trace.base is not None and trace.base.arranged is None}
        names = {*self.traces, *(entry.name for entry in self.links[-1].index.entries if entry.kind == "alias")}
        hiding = [entry.name for entry in index.entries if entry.base is None and entry.name not in names]
        if hiding and index.base_tensors > len(known.keys() | index.pieces):
            what = "a pack may hide a tensor of the base under this name"
            raise RecipeError(what, path=self.links[0].path, tensor=hiding[0], hint=_GIVE_BASE)
        return [
            Entry(name, "removed", base=BaseRef(name, base.dtype, base.shape, base.digest))
            for name, base in known.items()
            if name not in used and name not in names
        ]

    def write(self, writer: PackWriter) -> Index:
        """Copy all blobs and return the index.

        Raises:
            FormatError: A pack is damaged.
            LimitError: There are too many tables.
            RecipeError: The base is needed.
        """
        first, last = self.links[0].index, self.links[-1].index
        holding = {link.path for trace in self.traces.values() for link, _ in trace.steps}
        used = [link for link in self.links if link.path in holding]
        starts = accumulate((len(link.index.tables) for link in used), initial=0)
        offsets = {link.path: start for link, start in zip(used, starts, strict=False)}
        entries = [_written(writer, trace, offsets) for _, trace in sorted(self.traces.items(), key=lambda item: item[0].encode())]
        entries += [*(entry for entry in last.entries if entry.kind == "alias"), *self._removed()]
        files, heads = join_files(writer, self.links), join_heads(writer, self.links)
        tables = tuple(writer.plain_blob(table) for link in used for table in link.tables)
        return Index(
            base_fingerprint=first.base_fingerprint,
            base_tensors=first.base_tensors,
            result_fingerprint=last.result_fingerprint,
            result_tensors=last.result_tensors,
            result_bytes=last.result_bytes,
            recipe=self._recipe(),
            entries=tuple(sorted(entries, key=lambda entry: entry.name.encode())),
            files=files,
            created_by=f"deltapack {__version__}",
            required=features_of(entries, files, last.folders, heads),
            optional=last.optional,
            folders=last.folders,
            containers=heads,
            tables=tables,
        )


def _first(link: PackReader) -> dict[str, _Trace]:
    """Return what the first pack makes of the base's tensors."""
    traces = {}
    for entry in (entry for entry in link.index.entries if entry.in_result):
        if entry.kind == "unchanged":
            traces[entry.name] = _Trace(entry, entry.base)
        else:
            traces[entry.name] = replace(_anew(link, entry), base=None if entry.partner is None else entry.base)
    return traces


def _anew(link: PackReader, entry: Entry) -> _Trace:
    """Return a tensor that starts without the base."""
    return _Trace(entry, stored=(link, entry)) if entry.kind == "stored" else _Trace(entry, steps=((link, entry),))


def _next(link: PackReader, entry: Entry, traces: Mapping[str, _Trace], aliases: Mapping[str, str]) -> _Trace:
    """Return what one more pack makes of a tensor.

    Args:
        link: The pack.
        entry: What it says of the tensor.
        traces: What the packs before it make of theirs.
        aliases: Second names of these.

    Raises:
        BaseMismatchError: The pack was made from another tensor.
        RecipeError: The base is needed.
    """
    base = entry.base
    if base is None or (entry.kind != "unchanged" and entry.partner is None):
        return _anew(link, entry)
    if base.arranged is not None:
        untouched = {name for name, trace in traces.items() if _is_of_base(name, trace)}
        if not {aliases.get(name, name) for name in base.arranged.names} <= untouched:
            raise _refused(link, entry, "the pack makes it of tensors that packs before it change or rename")
        before = _Trace(entry, base)
    else:
        found = traces.get(aliases.get(base.name, base.name))
        if found is None or found.entry.digest != base.digest:
            raise wrong_base(link.path, base.name, base.digest, "no such tensor" if found is None else f"digest {found.entry.digest}")
        before = found
    if before.base is not None and before.base.arranged is not None and before.base.name != entry.name:
        raise _refused(link, entry, "the pack renames what one before it makes of several tensors")
    if entry.kind == "unchanged":
        return replace(before, entry=entry)
    same = (base.dtype, base.shape) == (entry.dtype, entry.shape)
    if before.stored is not None or (before.steps and not same):
        raise _refused(link, entry, "it is stored whole, or has another type or shape, after another pack changed it")
    return replace(before, entry=entry, steps=(*before.steps, (link, entry)))


def _is_of_base(name: str, trace: _Trace) -> bool:
    """Whether a tensor is the base's of that name, as it is."""
    base = trace.base
    return base is not None and base.name == name and base.arranged is None and not trace.steps


def _refused(link: PackReader, entry: Entry, why: str) -> RecipeError:
    return RecipeError(f"it cannot be put behind what other packs hold of it: {why}", path=link.path, tensor=entry.name, hint=_GIVE_BASE)


def _written(writer: PackWriter, trace: _Trace, offsets: Mapping[Path, int]) -> Entry:
    """Copy the blobs of a tensor, whose chunks are checked, and return its entry.

    Raises:
        FormatError: A pack is damaged.
        RecipeError: There are more steps than an entry may have.
    """
    said = trace.entry
    entry = Entry(said.name, "unchanged", said.dtype, said.shape, said.digest, trace.base)
    if trace.stored is not None:
        link, held = trace.stored
        assert held.stored is not None
        blob = stored_chunks(link, held, held.stored)
        for chunk in range(blob.layout.chunks):
            decode_stored_chunk(blob, held.dtype, chunk)
        entry = replace(entry, kind="stored", stored=writer.copy_blob(link, held.stored))
        return writer.chunk_digests(entry, [], link.chunk_digests(held)[1])
    if not trace.steps:
        return entry
    count = sum(len(held.exact) for _, held in trace.steps)
    if count > MOST_STEPS:
        hint = f"Squash fewer packs at a time, or give the base. {_GIVE_BASE}"
        what = "too many steps of a tensor"
        raise RecipeError(what, path=trace.steps[-1][0].path, tensor=said.name, expected=f"at most {MOST_STEPS}", found=count, hint=hint)
    exact = tuple(step for link, held in trace.steps for step in _steps(writer, link, held, offsets[link.path]))
    entry = replace(entry, kind="exact", exact=exact)
    return writer.chunk_digests(entry, [], _digests(trace)) if entry.needs_digests else entry


def _steps(writer: PackWriter, link: PackReader, held: Entry, tables: int) -> list[ExactStep]:
    """Copy the steps that an entry of a pack holds; `tables` is where its tables begin in the new pack."""
    for blob in ExactTensor.of(link, held).blobs:
        for chunk in range(blob.layout.chunks):
            exact_bytes(blob, chunk, held.dtype)
    return [ExactStep(writer.copy_blob(link, step.blob), tables + step.tables if link.index.tables else 0) for step in held.exact]


def _digests(trace: _Trace) -> list[bytes]:
    """Return the chunk digests of a tensor that starts anew: those of its only entry, or of what its entries give when they are decoded.

    Raises:
        FormatError: A pack is damaged.
    """
    link, held = trace.steps[0]
    if len(trace.steps) == 1:
        return link.chunk_digests(held)[1]
    tensors, digests = [ExactTensor.of(*step) for step in trace.steps], []
    for chunk in range(chunk_count(held.numel)):
        elements: Elements = np.zeros(0, held.dtype.storage)
        for tensor in tensors:
            elements = tensor.part(chunk, elements, held.dtype)
        digests.append(chunk_digest(elements))
    found = root_digest(trace.entry.dtype.name, trace.entry.shape, digests)
    if found != trace.entry.digest:
        raise wrong_result(trace.steps[-1][0].path, trace.entry.name, trace.entry.digest, found)
    return digests
