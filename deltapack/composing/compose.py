"""Decide what each tensor of the result is made of: base, terms of the packs, elements that a pack stores whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from deltapack.checkpoint import TensorInfo
from deltapack.checkpoint.metadata import Strings
from deltapack.composing.assets import choose_donor
from deltapack.composing.basecheck import BaseTensors, check_base
from deltapack.composing.folders import folders_of_result
from deltapack.composing.metadata import choose_metadata
from deltapack.composing.parts import WHOLE, Chooser, Part, adds, name_of, rows_of, terms_of, whole_job
from deltapack.composing.tensor_job import FromBase, OwnTerm, StoredRows, TensorJob, TermSource
from deltapack.composing.tied import second_names
from deltapack.composing.vocabulary import Vocabulary
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType
from deltapack.errors import MergeConflictError
from deltapack.format.digest import NOTHING
from deltapack.format.reader import PackReader

__all__ = ["Blend", "Composition", "Vocab", "compose"]

Blend = Callable[[TensorInfo, Mapping[int, tuple[OwnTerm, ...]]], tuple[TermSource, ...]]
"""Takes a base tensor and what each pack that has it would add, unweighted and by the pack's number; returns what is added."""

Vocab = int | Literal["base"] | Vocabulary
"""Whose new rows a result has: a pack's, by its number, none, or those of all packs, united."""

_GONE = ("alias", "removed")
"""Kinds of entries that drop the base tensor of their name; a tied name is held by another tensor."""


@dataclass(frozen=True)
class Composition:
    """What to restore: jobs by name, second names of tied tensors, the pack whose side files apply, what to tell, sub-folders, metadata.

    The metadata, free strings of weight files by folder, are none where those of the base count.
    """

    jobs: tuple[TensorJob, ...]
    aliases: Mapping[str, str]
    assets: PackReader | None
    notes: tuple[str, ...]
    folders: Mapping[str, str] = field(default_factory=dict)
    metadata: Strings | None = None


def compose(
    base: BaseTensors,
    packs: Sequence[WeightedPack],
    *,
    prefer: int | None = None,
    assets: int | Literal["base"] | None = None,
    vocab: Vocab | None = None,
    dtype: DType | None = None,
    blend: Blend | None = None,
) -> Composition:
    """Check packs against the headers of a base, and against each other, and plan every tensor of the result.

    Args:
        base: The base.
        packs: The packs in order of addition; at least one.
        prefer: Which pack decides where packs cannot be added: new or reshaped tensors, integers, new rows, side files.
        assets: Which pack the side files are from, or the base, if not from that one.
        vocab: Whose rows a tensor has that packs grew, and whose side files go with them; of the only pack that grew it unless given.
            Of a united vocabulary the side files are those of its donor.
        dtype: Type of all float tensors of the result, instead of their own.
        blend: What the packs' differences become; their weighted sum unless given.

    Raises:
        BaseMismatchError: The base lacks a tensor, or one has another shape or dtype, or packs have different bases.
        MergeConflictError: Packs disagree on what cannot be added and `prefer` does not decide.
    """
    digests = check_base(base, [pack.reader for pack in packs])
    by_base, new = _group(base, packs)
    grown = _grown_rows(by_base) if isinstance(vocab, Vocabulary) else {}
    if vocab is not None:
        by_base = {name: [_with_rows_of(part, base.tensors[name], vocab) for part in parts] for name, parts in by_base.items()}
    chooser = Chooser(packs[prefer] if prefer is not None else None)
    maker = _JobMaker(packs, digests, chooser, blend)
    jobs = []
    for name, tensor in base.tensors.items():
        parts = by_base.get(name, [])
        staying = [part for part in parts if part.entry.kind not in _GONE]
        if staying:
            job = maker.based_job(tensor, staying)
            jobs.append(vocab.grow(job, grown[name]) if isinstance(vocab, Vocabulary) and name in grown else job)
    jobs += [whole for parts in new.values() if (whole := whole_job(chooser.one(parts), None)) is not None]
    names = {job.name for job in jobs}
    if len(names) != len(jobs):
        twice = next(job.name for job in jobs if sum(other.name == job.name for other in jobs) > 1)
        raise MergeConflictError("two tensors of the result would have this name", tensor=twice)
    donor = vocab.donor if isinstance(vocab, Vocabulary) else vocab
    wanted = (choice for choice in (assets, donor, prefer) if choice is not None)
    readers = [pack.reader for pack in packs]
    choice = next(wanted, None)
    reader, notes = choose_donor(readers, choice)
    tied = second_names(readers, names, readers[prefer] if prefer is not None else None)
    ordered = sorted((_cast(job, dtype) for job in jobs), key=lambda job: job.name.encode())
    folders = folders_of_result(readers, [*names, *tied], None if prefer is None else readers[prefer])
    told = (*notes, *_not_needed(base, readers, by_base, digests))
    return Composition(tuple(ordered), tied, reader, told, folders, choose_metadata(readers, choice))


def _not_needed(
    base: BaseTensors, packs: Sequence[PackReader], by_base: Mapping[str, Sequence[Part]], digests: Mapping[str, str]
) -> tuple[str, ...]:
    """Say which tensors of the base no pack knows: the packs were made when it had none of them, and so has the result."""
    if base.tensors and all(pack.index.base_fingerprint == NOTHING for pack in packs):
        return ("no base is needed: no tensor of this one was taken",)
    unknown = sorted(name for name in base.tensors if name not in by_base and name not in digests)
    if not unknown:
        return ()
    more = "" if len(unknown) == 1 else f" and {len(unknown) - 1} more"
    return (f"the base has tensors that it did not have at packing, and that the result does not get: {unknown[0]}{more}",)


def _grown_rows(parts: Mapping[str, Sequence[Part]]) -> dict[str, dict[int, StoredRows]]:
    """Return the new rows of each tensor that packs grew, by the packs' numbers."""
    out: dict[str, dict[int, StoredRows]] = {}
    for name, part in ((name, part) for name, own in parts.items() for part in own if part.entry.kind == "grown"):
        rows = rows_of(part)
        if isinstance(rows, StoredRows):
            out.setdefault(name, {})[part.number] = rows
    return out


def _with_rows_of(part: Part, tensor: TensorInfo, vocab: Vocab) -> Part:
    """Return a part without its new rows, unless it is of the pack whose rows are wanted as they are."""
    if part.entry.kind != "grown" or part.number == vocab:
        return part
    return replace(part, entry=replace(part.entry, kind="delta", shape=tensor.shape, stored=None, digest=""))


def _group(base: BaseTensors, packs: Sequence[WeightedPack]) -> tuple[dict[str, list[Part]], dict[str, list[Part]]]:
    """Return the parts of each base tensor, and of each new tensor by name, in pack order."""
    by_base: dict[str, list[Part]] = {}
    new: dict[str, list[Part]] = {}
    for number, pack in enumerate(packs):
        entries = pack.reader.index.entries
        used = {entry.base.name for entry in entries if entry.base is not None}
        for entry in entries:
            if entry.base is not None:
                name = base.aliases.get(entry.base.name, entry.base.name)
                by_base.setdefault(name, []).append(Part(pack, number, entry))
                continue
            replaces = entry.name in base.tensors and entry.name not in used
            if replaces or entry.kind in WHOLE:
                (by_base if replaces else new).setdefault(entry.name, []).append(Part(pack, number, entry))
    return by_base, new


@dataclass(frozen=True)
class _JobMaker:
    """Plans tensors that the base has."""

    packs: Sequence[WeightedPack]
    digests: Mapping[str, str]
    chooser: Chooser
    blend: Blend | None

    def based_job(self, tensor: TensorInfo, parts: Sequence[Part]) -> TensorJob:
        """Plan one tensor from what the packs that keep it say of it."""
        digest = self.digests.get(tensor.name, "")
        name = name_of(tensor.name, parts, self.chooser)
        changing = [part for part in parts if part.entry.kind != "unchanged"]
        if not changing:
            return TensorJob(name, tensor.dtype, tensor.shape, FromBase(tensor, digest), digest)
        only = changing[0]
        whole = self._whole(only, tensor, name) if len(changing) == 1 else None
        if whole is not None:
            return whole
        structural = [part for part in changing if part.is_structural and not adds(part, tensor)]
        if structural:
            return self._structural_job(tensor, name, digest, parts, structural)
        dtypes = {part.entry.dtype for part in changing}
        dtype = dtypes.pop() if len(dtypes) == 1 else tensor.dtype
        source = FromBase(tensor, digest, self._added(tensor, parts))
        return TensorJob(name, dtype, tensor.shape, source, self._promised(only), only.pack.reader.path)

    def _whole(self, part: Part, tensor: TensorInfo, name: str) -> TensorJob | None:
        """Plan a stored tensor as it is, if it is one, where nothing else changes it: no weight scales what cannot be added."""
        as_is = self.blend is None and part.pack.weight_of(tensor.name) == 1
        based = FromBase(tensor, self.digests.get(tensor.name, ""))
        whole = whole_job(part, based) if as_is or not adds(part, tensor) else None
        return None if whole is None else replace(whole, name=name)

    def _structural_job(self, tensor: TensorInfo, name: str, digest: str, parts: Sequence[Part], structural: Sequence[Part]) -> TensorJob:
        """Plan a tensor whose shape or rows one pack decides; what the others add to the common rows is added."""
        part = self.chooser.one(structural)
        entry = part.entry
        if entry.kind != "grown":
            # Nothing can be added to another tensor; and adding to fewer rows would lose what was added to the rest.
            part = self.chooser.one([part for part in parts if part.entry.kind != "unchanged"])
            whole = self._whole(part, tensor, name)
            if whole is not None:
                return whole
            entry, parts = part.entry, [part]
        adding = [other for other in parts if not other.is_structural or other.entry.kind == entry.kind or adds(other, tensor)]
        source = FromBase(tensor, digest, self._added(tensor, adding), rows_of(part) if entry.kind == "grown" else None)
        return TensorJob(name, entry.dtype, entry.shape, source, self._promised(part), part.pack.reader.path)

    def _added(self, tensor: TensorInfo, parts: Sequence[Part]) -> tuple[TermSource, ...]:
        """Return what is added to the common elements."""
        if self.blend is not None:
            return self.blend(tensor, {part.number: tuple(terms_of(part, tensor, 1)) for part in parts})
        return tuple(term for part in parts for term in terms_of(part, tensor, part.pack.weight_of(tensor.name)))

    def _promised(self, part: Part) -> str:
        """Return the digest of the result, if the only pack says what it is."""
        alone = len(self.packs) == 1 and self.packs[0].is_plain and self.blend is None
        return part.entry.digest if alone else ""


def _cast(job: TensorJob, dtype: DType | None) -> TensorJob:
    if dtype is None or not job.dtype.is_delta or job.dtype == dtype:
        return job
    return replace(job, dtype=dtype, digest="")
