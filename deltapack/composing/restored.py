"""The checkpoint that packs restore from a base, one after the other, read without being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from deltapack.checkpoint import Checkpoint, Head, LeftOut, SideFile, TensorInfo, plan_shards
from deltapack.checkpoint.tensors import Source
from deltapack.composing.arranged import arranged_base, arrangements_of
from deltapack.composing.basecheck import wrong_base
from deltapack.composing.compose import Composition, compose
from deltapack.composing.containers import fitting, head_after, head_of
from deltapack.composing.metadata import result_metadata
from deltapack.composing.restored_files import files_after
from deltapack.composing.stepping import Kept, Said, SteppedSource
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.errors import BaseMismatchError, LimitError
from deltapack.format.index import Entry
from deltapack.format.reader import PackReader
from deltapack.limits import Limits
from deltapack.sources.local import LocalFile

__all__ = ["RestoredCheckpoint"]

_MOST_LAYOUTS = 16
"""Packs of a chain that fuse, split or transpose tensors: each reads those of the one before in its own order."""


class RestoredCheckpoint(Checkpoint):
    """The checkpoint that a pack restores from another one, itself restored or not; it is closed with that.

    Attributes:
        promised: Root digests of its tensors, as the pack says.
    """

    def __init__(self, base: Checkpoint, pack: PackReader, *, verify: bool = True) -> None:
        """Compare the headers of a base with a pack, and plan each tensor.

        Args:
            base: What the pack is for.
            pack: The pack.
            verify: Whether what is read of the base is compared with the digests of packs.

        Raises:
            BaseMismatchError: The pack is not for that base.
            FormatError: The pack is damaged.
            LimitError: Too many packs of a chain have tensors in another layout than the one before.
        """
        former = base if isinstance(base, RestoredCheckpoint) else None
        self.origin: Checkpoint = former.origin if former else base
        self.packs: tuple[PackReader, ...] = (*(former.packs if former else ()), pack)
        self._layouts: int = (former._layouts if former else 0) + bool(arrangements_of(pack.index))
        if self._layouts > _MOST_LAYOUTS:
            hint = "`deltapack squash --base BASE` makes one pack of several."
            raise LimitError("too many packs of the chain change the layout of tensors", path=pack.path, found=self._layouts, hint=hint)
        seen = arranged_base(base, [pack])
        if former:
            _check_link(former, pack)
        composition = compose(seen, [WeightedPack(pack)])
        self.path, self.is_folder = base.path, base.is_folder or pack.index.files is not None
        self.chosen, self.unread, self.notes = base.chosen, base.unread, (*base.notes, *composition.notes)
        self.folders, self.aliases = composition.folders, MappingProxyType(dict(sorted(composition.aliases.items())))
        self.metadata = result_metadata(base, composition.metadata, composition.folders, {})
        self.promised = {job.name: job.digest for job in composition.jobs}
        self.files = self
        self._verify, self._limits, self._handles, self._places = verify, base._limits, base._handles, base._places
        self._heads = _heads(base if former is None else former, pack)
        self._shards = _shards(base, seen, composition, [Head(*item) for item in self._heads.items()], pack)
        self._take(seen, pack, composition)

    def _take(self, seen: Checkpoint, pack: PackReader, composition: Composition) -> None:
        """Plan the tensors."""
        entries = {seen.aliases.get(entry.base.name, entry.base.name): entry for entry in pack.index.entries if entry.base is not None}
        shard_of = {name: shard for shard, names in self._shards for name in names}
        kept = Kept()
        tensors: dict[str, TensorInfo] = {}
        sources: dict[str, Source] = {}
        for job in composition.jobs:
            tensors[job.name] = info = TensorInfo(job.name, job.dtype, job.shape, shard_of[job.name])
            sources[job.name] = _restored(seen, pack, job, entries, SteppedSource(info, kept, verify=self._verify))
        self.tensors = MappingProxyType(dict(sorted(tensors.items())))
        self._sources = sources

    def file_range(self, name: str, start: int) -> tuple[LocalFile, int] | None:
        """Return where a tensor that no pack changes lies in the files of the base; none for others."""
        source = self._sources.get(self._find(name).name)
        return source.file_range(start) if isinstance(source, SteppedSource) else None

    @cached_property
    def _side_files(self) -> dict[str, SideFile] | None:
        return files_after(self.origin, self.packs, verify=self._verify)

    def list_side_files(
        self, include_code: bool = False, *, limits: Limits | None = None, leave_out: Sequence[str] = (), follow_links: bool = False
    ) -> tuple[list[SideFile], list[LeftOut]]:
        """List what travels beside the weights and, of the rest, what packs brought: code, unless `include_code`.

        Raises:
            BaseMismatchError: The base lacks a file that a pack leaves to it, or has another one.
            FormatError: A pack is damaged.
        """
        if self._side_files is None:
            # They are the base's own, so no pack holds them.
            return self.origin.list_side_files(include_code, limits=limits, leave_out=leave_out, follow_links=True)
        code = [] if include_code else [file for file in self.side_files() if file.name.endswith(".py")]
        files = [file for file in self.side_files() if file not in code]
        return files, [LeftOut(file.name, "Python code, which travels only with --include-code") for file in code]

    def side_files(self) -> list[SideFile]:
        """List the side files, sorted by name.

        Raises:
            BaseMismatchError: The base lacks a file that a pack leaves to it, or has another one.
            FormatError: A pack is damaged.
        """
        if self._side_files is None:
            return self.origin.side_files()
        return sorted(self._side_files.values(), key=lambda file: file.name.encode())

    def side_file(self, name: str) -> SideFile | None:
        """Return the file of this name; none where there is none. Raises as `side_files`."""
        return self.origin.side_file(name) if self._side_files is None else self._side_files.get(name)

    def heads(self) -> tuple[Head, ...]:
        """Return the heads of the weight files, as the last pack says; none where it says nothing of them. Raises as `head`."""
        found = ((container.name, self.head(container.name)) for container in self.packs[-1].index.containers)
        return tuple(Head(name, data) for name, data in found if data is not None)

    def head(self, name: str) -> bytes | None:
        """Return the head of this name alone, none where there is none.

        Raises:
            BaseMismatchError: What it refers to, of the base or of a pack before, is not there or another one.
            FormatError: A pack is damaged.
        """
        found = self._heads.get(name)
        return head_after(self.origin, self.packs, name) if found is None else found

    def weight_paths(self) -> list[Path]:
        """Return the paths of what it is read from: weight files of the base, and packs."""
        return [*self.origin.weight_paths(), *(pack.path for pack in self.packs)]


def _check_link(former: RestoredCheckpoint, pack: PackReader) -> None:
    """Compare what a pack says of its base with what the pack before it promises.

    Raises:
        BaseMismatchError: The digest of a tensor differs.
    """
    for entry in pack.index.entries:
        if entry.base is not None and entry.base.arranged is None:
            name = former.aliases.get(entry.base.name, entry.base.name)
            promised = former.promised.get(name)
            if promised is not None and promised != entry.base.digest:
                hint = f"What {former.packs[-1].path} restores is not what this pack was made from."
                raise wrong_base(pack.path, name, entry.base.digest, f"digest {promised}", hint)


def _heads(base: Checkpoint, pack: PackReader) -> dict[str, bytes]:
    """Return the heads of the weight files that a pack restores; none where it says nothing of them, or the base lacks what they take.

    Raises:
        FormatError: One is damaged.
    """
    heads = {}
    try:
        for container in pack.index.containers:
            whole = container.blob is not None and not container.base
            heads[container.name] = head_of(pack, container, None if whole else base.head(container.name), base.path)
    except BaseMismatchError:  # whoever wants these very files is told
        return {}
    return heads


def _shards(
    base: Checkpoint, seen: Checkpoint, composition: Composition, heads: Sequence[Head], pack: PackReader
) -> list[tuple[str, list[str]]]:
    """Return the weight files that the checkpoint would be written to, with their tensors."""
    shards = fitting(pack, heads)[0] if heads else ()
    if not shards:
        shards = plan_shards(
            [(job.name, job.dtype, job.shape) for job in composition.jobs],
            like=base.weight_shards(),
            rename={job.name: seen.home_of(job.source.base.name) for job in composition.jobs if isinstance(job.source, FromBase)},
            folders=composition.folders,
        )
    return [(shard.file, [tensor.name for tensor in shard.tensors]) for shard in shards]


def _restored(seen: Checkpoint, pack: PackReader, job: TensorJob, entries: dict[str, Entry], new: SteppedSource) -> SteppedSource:
    """Return a tensor of a result: what it is made of in the base, made one step longer.

    Args:
        seen: The base, with arranged tensors.
        pack: The pack.
        job: What it does to the tensor.
        entries: Its entries by the names of their base tensors.
        new: The tensor, with nothing in it.
    """
    source = job.source
    if not isinstance(source, FromBase):
        return replace(new, steps=(job,))
    name, step = source.base.name, () if job.is_base else (job,)
    before = seen._sources[name] if isinstance(seen, RestoredCheckpoint) else None
    if isinstance(before, SteppedSource):
        new = replace(new, base=before.base, held=before.held, said=before.said, steps=before.steps)
    else:
        new = replace(new, base=seen, held=seen.tensors[name])
    entry = entries.get(name)
    said = Said(pack, entry) if new.said is None and not new.steps and new.base is not None and step and entry is not None else new.said
    return replace(new, said=said, steps=(*new.steps, *step))
