"""The checkpoint that a base becomes with an adapter merged into it, read without being written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from deltapack.adapters.grouping import group_tensors
from deltapack.adapters.merging import ConvertedSource, Factors, KeptUpdates, Magnitude, MergedSource, build_update
from deltapack.adapters.placing import FLOATS, Placed, place
from deltapack.adapters.settings import CONFIG, Settings, read_settings
from deltapack.adapters.tying import without_ties
from deltapack.adapters.updates import Update
from deltapack.checkpoint import Checkpoint, Head, LeftOut, SideFile, TensorInfo, list_side_files
from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.formats import FORMATS, format_of
from deltapack.checkpoint.links import LEADS_OUT
from deltapack.checkpoint.sidefiles import AS_ASKED, fits
from deltapack.checkpoint.tensors import ParsedFile, Source
from deltapack.errors import CheckpointError, NotACheckpointError
from deltapack.kernels import rounding
from deltapack.kinds import HEAD_BYTES, kind_of
from deltapack.limits import DEFAULT_LIMITS, OF_THE_USER, Limits
from deltapack.sources.inputs import note_named
from deltapack.sources.local import LocalFile
from deltapack.sources.remote_path import is_file

__all__ = ["TOKENIZER", "AdaptedCheckpoint", "adapter_folder", "is_adapter", "open_adapted"]

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER = re.compile(
    r"(?i)tokenizer.*|vocab\.(json|txt)|merges\.txt|spiece\.model|special_tokens_map\.json|added_tokens\.json|chat_template\..*"
)
"""Files of a tokenizer, which an adapter may have of its own."""


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    if not is_file(path / CONFIG) or not any((path / name).is_file() for name in _WEIGHTS):
        return False
    return not any((path / name).is_file() for row in FORMATS for name in (row.whole, row.index))


def adapter_folder(path: Path) -> Path | None:
    """Return the folder of an adapter that a path names, by the folder or by its file of tensors; none where it names something else.

    Raises:
        NotACheckpointError: It names a file of an adapter that has no config beside it.
    """
    if path.name not in _WEIGHTS or not path.is_file():
        return path if is_adapter(path) else None
    if not (path.parent / CONFIG).is_file():
        hint = f"Put the {CONFIG} that was saved with it beside it: rank and scale are there."
        raise NotACheckpointError(
            "the file of an adapter has no config beside it", path=path, expected=str(path.parent / CONFIG), hint=hint
        )
    return path.parent


class AdaptedCheckpoint(Checkpoint):
    """A base with an adapter merged; made by `open_adapted`. Closing it closes the adapter, not the base.

    Its tensors are the base's, by name, type and order. A weight that the adapter is for is `base + update`, computed in f32 when it is
    read and rounded once, whatever the range.
    """

    def __init__(self, base: Checkpoint, folder: Path, parsed: ParsedFile, settings: Settings, limits: Limits) -> None:
        """Place each tensor of the adapter. Raises as `open_adapted`."""
        self.origin, self._folder, self._settings, self._kept = base, folder, settings, KeptUpdates()
        self._factors = {info.name: (info, source) for info, source in parsed.tensors}
        infos = {name: info for name, (info, _) in self._factors.items()} | {
            alias: replace(self._factors[kept][0], name=alias) for alias, kept in parsed.aliases.items()
        }
        self._factors |= {alias: (infos[alias], self._factors[kept][1]) for alias, kept in parsed.aliases.items()}
        file = parsed.handles[0].path
        groups = group_tensors(file, infos, dora=settings.dora)
        placed, notes = place(base, file, infos, groups, settings)
        placed = without_ties(base, file, placed, self._same)
        self.path, self.is_folder, self._limits = folder, base.is_folder, limits
        self.chosen, self.unread, self.folders, self.metadata = base.chosen, (), base.folders, base.metadata
        self.aliases, self.files, self._handles, self._places = base.aliases, self, list(parsed.handles), base._places
        self._head_sources, self._parts, self._shards = {}, [], base.weight_shards()
        self._take(base, placed, infos)
        self.notes = (*parsed.notes, *notes, *self._told(len(groups.updates), len(groups.whole)))

    def _take(self, base: Checkpoint, placed: Sequence[Placed], infos: Mapping[str, TensorInfo]) -> None:
        """Say of what each tensor is made."""
        tensors, sources = dict(base.tensors), dict(base._sources)
        last = self._shards[-1][0] if self._shards else ""
        for item in placed:
            held = base.tensors.get(item.name)
            info = held or replace(infos[item.whole or ""], name=item.name, shard=last)
            source = base._sources.get(item.name)
            if item.whole is not None:
                own, elements = self._factors[item.whole]
                info = replace(info, shape=own.shape)
                source = ConvertedSource(elements, own.dtype, info.dtype)
            assert source is not None, "a tensor with an update is in the base, or saved whole"
            tensors[item.name] = info
            sources[item.name] = source if item.group is None else self._merged(info, source, item)
            if held is None and self._shards:
                self._shards[-1][1].append(item.name)
        self.tensors = MappingProxyType(dict(sorted(tensors.items())))
        self._sources = sources
        self._changed = {item.name for item in placed}

    def _merged(self, info: TensorInfo, source: Source, item: Placed) -> MergedSource:
        """Return a weight with an update."""
        assert item.group is not None
        group, shape = item.group, (info.shape[0], int(np.prod(info.shape[1:])))
        scale = self._settings.scale(group.module)
        factors: Factors = {part: self._factors[name] for part, name in group.parts.items()}

        def update() -> Update:
            return self._kept.get(item.name, lambda: build_update(factors, item.transposed, scale))

        if "lora_magnitude_vector" not in factors:
            return MergedSource(source, info.dtype, shape, update)
        by_column = item.transposed or "lora_embedding_A" in factors
        magnitude = self._magnitude(factors, shape[1] if by_column else shape[0], by_column)
        return MergedSource(source, info.dtype, shape, update, lambda: magnitude)

    def _magnitude(self, factors: Factors, length: int, by_column: bool) -> Magnitude:
        """Read DoRA's magnitudes of a weight.

        Raises:
            CheckpointError: There are not as many as rows, or columns.
        """
        info, source = factors["lora_magnitude_vector"]
        if info.numel != length or info.dtype.name not in FLOATS:
            path, expected, found = self._handles[0].path, f"{length} floats", f"{list(info.shape)} {info.dtype}"
            raise CheckpointError("the magnitudes are not one a row", path=path, tensor=info.name, expected=expected, found=found)
        held = np.empty(length, info.dtype.storage)
        source.read_into(0, held)
        return Magnitude(rounding.to_f32(held, info.dtype), by_column)

    def _same(self, one: str, other: str) -> bool:
        """Whether two tensors of the adapter have the same bits."""
        (first, left), (second, right) = self._factors[one], self._factors[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        step = 1 << 20
        for start in range(0, first.numel, step):
            pieces = [np.empty(min(step, first.numel - start), first.dtype.storage) for _ in range(2)]
            left.read_into(start, pieces[0])
            right.read_into(start, pieces[1])
            if pieces[0].tobytes() != pieces[1].tobytes():
                return False
        return True

    def _told(self, updates: int, whole: int) -> list[str]:
        """Return what the user should know of how it was read."""
        base, trained = self.origin.path.resolve(), self._settings.base.rstrip("/\\")
        names = {base.name, self.origin.path.name, *(part.rpartition("--")[2] for part in base.parts if part.startswith("models--"))}
        kind = {"LORA": "DoRA" if self._settings.dora else "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}[self._settings.kind]
        more = f" and {whole} tensor{'s' * (whole > 1)} saved whole" if whole else ""
        what = f"{kind} of {updates} module{'s' * (updates != 1)}{more}"
        notes = [f"{self._folder.name} is an adapter ({what}), merged into the base as it is read"]
        if trained and re.split(r"[/\\]", trained)[-1] not in names:
            notes.append(f"the adapter names {self._settings.base} as its base, which is called {base.name} here")
        own = sorted(self._own_files()[0])
        return [*notes, f"from the adapter's folder: {', '.join(own)}"] if own and self.is_folder else notes

    def _own_files(self, *, follow_links: bool = True) -> tuple[dict[str, SideFile], list[LeftOut]]:
        """Return the tokenizer files of the adapter's folder, which take the place of the base's, and those that are links out of it."""
        files, left = list_side_files(self._folder, limits=self._limits, follow_links=follow_links)
        outside = [item for item in left if item.reason == LEADS_OUT and TOKENIZER.fullmatch(item.name)]
        return {file.name: file for file in files if TOKENIZER.fullmatch(file.name)}, outside

    def file_range(self, name: str, start: int) -> tuple[LocalFile, int] | None:
        """Return where a tensor that the adapter does not change lies in the files of the base; none for others."""
        found = self._find(name).name
        return None if found in self._changed else self.origin.file_range(found, start)

    def list_side_files(
        self, include_code: bool = False, *, limits: Limits | None = None, leave_out: Sequence[str] = (), follow_links: bool = False
    ) -> tuple[list[SideFile], list[LeftOut]]:
        """List the base's side files, with the adapter's own tokenizer in place of the base's. Raises as `Checkpoint.list_side_files`.

        Links of the base are followed in any case, as no pack holds what is the base's.
        """
        own, outside = self._own_files(follow_links=follow_links) if self.is_folder else ({}, [])
        there = [file.name for file in self.origin.list_side_files(include_code, limits=limits, follow_links=True)[0]] if leave_out else []
        for_base = [one for one in leave_out if any(fits(name, one) for name in there) or not any(fits(name, one) for name in own)]
        files, left = self.origin.list_side_files(include_code, limits=limits, leave_out=for_base, follow_links=True)
        files = [file for file in files if file.name not in {item.name for item in outside}]
        left = [*left, *outside]
        behind = {item.name for item in left} | {name for name in own if any(fits(name, one) for one in leave_out)}
        left += [LeftOut(name, AS_ASKED) for name in sorted(behind - {item.name for item in left})]
        merged = {file.name: file for file in files} | own
        kept = {name: file for name, file in merged.items() if name not in behind}
        return sorted(kept.values(), key=lambda file: file.name.encode()), left

    def side_files(self) -> list[SideFile]:
        """List the side files, sorted by name."""
        return self.list_side_files(include_code=True, limits=OF_THE_USER, follow_links=True)[0]

    def side_file(self, name: str) -> SideFile | None:
        """Return the file of this name; none where there is none."""
        own = self._own_files()[0].get(name) if self.is_folder else None
        return own or self.origin.side_file(name)

    def heads(self) -> tuple[Head, ...]:
        """Return no head: no file of weights exists."""
        return ()

    def weight_paths(self) -> list[Path]:
        """Return the paths of what it is read from: weight files of the base, and the adapter's."""
        return [*self.origin.weight_paths(), *(handle.path for handle in self._handles)]


def open_adapted(base: Checkpoint, folder: Path, limits: Limits = DEFAULT_LIMITS) -> AdaptedCheckpoint:
    """Open the adapter in a folder as the checkpoint that it makes of a base.

    Args:
        base: The base, which stays open as long as the result is read.
        folder: The adapter: `adapter_config.json` and `adapter_model.safetensors`, or `.bin`; or one of these files, beside its config.
        limits: Bounds on its header, names and shapes.

    Raises:
        BaseMismatchError: The base lacks a tensor that the adapter is for, or has it in another shape.
        CheckpointError: The adapter is damaged.
        LimitError: It exceeds `limits`.
        NotACheckpointError: Its file is of another kind than its name says.
        UnsupportedError: It is of a kind, or has a setting, a tensor or a base, with which it is not merged here.
    """
    named = folder if folder.is_file() else None
    folder = folder if named is None else folder.parent
    note_named(folder)
    settings = read_settings(folder / CONFIG)
    file = open_to_read(named or next(folder / name for name in _WEIGHTS if (folder / name).is_file()))
    try:
        row = format_of(file.path.name)
        assert row is not None, "a suffix of `_WEIGHTS` has a format"
        kind = kind_of(file.read(0, min(HEAD_BYTES, file.size)), "")
        if kind is not None and kind.name not in row.kinds:
            raise NotACheckpointError(f"this is {kind.text}, not the tensors of an adapter", path=file.path, hint=kind.as_checkpoint)
        return AdaptedCheckpoint(base, folder, row.parse(file, limits), settings, limits)
    except BaseException:
        file.close()
        raise
