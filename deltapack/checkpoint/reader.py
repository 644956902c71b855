"""A checkpoint opened for reading: every tensor known, none loaded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
import numpy.typing as npt

from deltapack.checking import as_checkpoint
from deltapack.checkpoint.arranging import ArrangedSource, Tiles
from deltapack.checkpoint.files import open_to_read, refuse_fault
from deltapack.checkpoint.folders import Located, check_folders, locate_all, prefixed
from deltapack.checkpoint.formats import WeightFormat
from deltapack.checkpoint.heads import Head, read_head, read_heads, sources_of_heads
from deltapack.checkpoint.joining import aliases_of, check_index, strings_of
from deltapack.checkpoint.manifest import MANIFEST
from deltapack.checkpoint.rivals import check_chosen, check_rival
from deltapack.checkpoint.sidefiles import LeftOut, SideFile, list_side_files
from deltapack.checkpoint.tensors import FileSource, ParsedFile, Source, TensorInfo, check_count
from deltapack.errors import CheckpointError, NotACheckpointError, RecipeError
from deltapack.format.arrangement import Arrangement
from deltapack.kinds import HEAD_BYTES, MERGE_LORA, are_lora, kind_of
from deltapack.limits import DEFAULT_LIMITS, OF_THE_USER, Limits
from deltapack.sources.inputs import note_named
from deltapack.sources.local import LocalFile
from deltapack.sources.reading import Readable

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]


class Checkpoint:
    """A Hugging Face folder or one weight file; made by `open_checkpoint`, closed as a context manager.

    Reads are by element range and safe from any number of threads.

    Attributes:
        path: As given to `open_checkpoint`.
        is_folder: Whether it is a folder.
        tensors: From name to tensor, sorted by name; of tied tensors only the first.
        aliases: From the second name of a tied tensor to the name in `tensors`.
        metadata: Free strings of the safetensors headers, without ties: for each folder with weights (`""`: the checkpoint's own) those of
            its files together.
        folders: Sub-folders with weights, whose tensors' names begin with their path and `/`, with the name of the weight file there
            (without suffix and shard numbers).
        unread: Errors for weights of the folder that were not read; a fine-tune with some is not packed.
        notes: What the user should be told about how it was read.
        chosen: Whether there was anything to choose, for the `weights` that it was opened with.
        files: The checkpoint as its files hold it: itself, but for one that `with_arranged` returned.
    """

    def __init__(self, path: Path, located: Located, parsed: Sequence[Sequence[ParsedFile]], limits: Limits) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self._places, self.folders, self.unread = located.places, located.stems, located.unread
        self._limits, self.chosen = limits, any(place.chosen for place in located.places)
        files = [file for own in parsed for file in own]
        self._handles = [handle for file in files for handle in file.handles]
        self._head_sources = sources_of_heads(self._places, parsed, self.is_folder)
        self._sources: dict[str, Source] = {}
        self._parts = [
            place.folder / name for place, own in zip(located.places, parsed, strict=True) for file in own for name in file.files
        ]
        self._shards = [(name, [info.name for info, _ in file.tensors]) for name, file in zip(self._files(), files, strict=True)]
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for info, source in file.tensors:
                if info.name in tensors:
                    found = f"{tensors[info.name].shard} and {info.shard}"
                    raise CheckpointError("the tensor is in two shards", path=path, tensor=info.name, found=found)
                tensors[info.name] = info
                self._sources[info.name] = source
        check_count(path, len(tensors), limits)
        for place, own in zip(self._places, parsed, strict=True):
            check_folders(path, place.prefix, [info.name for file in own for info, _ in file.tensors], self.folders)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sorted(tensors.items())))
        self.aliases: Mapping[str, str] = MappingProxyType(aliases_of(path, self._places, tensors, files))
        self.metadata: Mapping[str, Mapping[str, str]]
        self.metadata, told = strings_of(self._places, parsed, self.aliases)
        self.files = self
        unlisted = [note for place in self._places for note in check_index(path, place, tensors, self.aliases)]
        chosen = [note for place in self._places for note in place.notes]
        self.notes: tuple[str, ...] = (*chosen, *unlisted, *told, *(note for file in files for note in file.notes))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.generic]:
        """Return the elements [start, stop) of a tensor, flattened in row-major order.

        Args:
            name: The tensor or an alias of it.
            start: First element.
            stop: End of the range; the number of elements by default.

        Returns:
            A fresh array of shape `[stop - start]` of the `storage` type of the tensor's dtype.

        Raises:
            CheckpointError: No such tensor or range, or the file was cut since it was opened.
        """
        info = self._find(name)
        stop = info.numel if stop is None else stop
        if not 0 <= start <= stop <= info.numel:
            found = f"[{start}, {stop})"
            raise CheckpointError("no such range", path=self.path, tensor=name, expected=f"within {info.numel}", found=found)
        out: npt.NDArray[np.generic] = np.empty(stop - start, info.dtype.storage)
        self.read_into(name, start, out)
        return out

    def read_into(self, name: str, start: int, out: npt.NDArray[np.generic]) -> None:
        """Fill `out`, a contiguous 1-D array of the tensor's storage type, with the elements from `start`.

        Raises:
            CheckpointError: As `read`.
        """
        info = self._find(name)
        if not 0 <= start <= start + len(out) <= info.numel or out.dtype.itemsize != info.dtype.itemsize:
            found = f"[{start}, {start + len(out)}) {out.dtype}"
            raise CheckpointError("no such range", path=self.path, tensor=name, expected=f"within {info.numel}", found=found)
        source = self._sources.get(info.name)
        if source is None or not self._handles:
            raise CheckpointError("the checkpoint is closed", path=self.path)
        if len(out):
            source.read_into(start, out)

    def file_range(self, name: str, start: int) -> tuple[LocalFile, int] | None:
        """Return the local file that holds a tensor's elements one after another and the offset of element `start`; none if none does."""
        info = self._find(name)
        source = self._sources.get(info.name)
        if not isinstance(source, FileSource) or not isinstance(source.file, LocalFile):
            return None
        return source.file, source.offset + start * info.dtype.itemsize

    def with_arranged(self, arrangements: Mapping[str, Arrangement]) -> Checkpoint:
        """Return the checkpoint as one that also holds tensors made of its own, by name; each hides one of its own of that name.

        Both are closed together. Each piece must be a box of a tensor here, and all of one arrangement of one type.
        """
        view, tiles = copy.copy(self), Tiles()
        tensors, sources = dict(self.tensors), dict(self._sources)
        for name, arrangement in arrangements.items():
            made_of = {piece: self._find(piece) for piece in arrangement.names}
            first = made_of[arrangement.names[0]]
            tensors[name] = TensorInfo(name, first.dtype, arrangement.shape, first.shard, arrangement)
            shapes = {piece: info.shape for piece, info in made_of.items()}
            sources[name] = ArrangedSource.of(arrangement, shapes, self.read_into, tiles)
        view.tensors = MappingProxyType(dict(sorted(tensors.items())))
        view.aliases = MappingProxyType({name: kept for name, kept in self.aliases.items() if name not in arrangements})
        view._sources = sources
        return view

    def home_of(self, name: str) -> str:
        """Return the tensor of the files that a tensor is, or that its first element lies in."""
        arranged = self.tensors[name].arranged
        return name if arranged is None else arranged.names[0]

    def _find(self, name: str) -> TensorInfo:
        info = self.tensors.get(self.aliases.get(name, name))
        if info is None:
            raise CheckpointError("no such tensor", path=self.path, tensor=name)
        return info

    def list_side_files(
        self, include_code: bool = False, *, limits: Limits | None = None, leave_out: Sequence[str] = (), follow_links: bool = False
    ) -> tuple[list[SideFile], list[LeftOut]]:
        """List what travels beside the weights, and everything that does not; both empty for a bare file.

        Args:
            include_code: Whether `.py` files travel.
            limits: Bounds on size and number; those that the checkpoint was opened with unless given.
            leave_out: Shell patterns of names that stay behind; see `sidefiles.list_side_files`.
            follow_links: Whether links to files outside of the folder are followed.

        Raises:
            LimitError: A file, or the files together, exceed the limits.
            RecipeError: A pattern fits no file.
        """
        if not self.is_folder:
            if leave_out:
                raise RecipeError("a bare file has no side files to leave out", path=self.path, found=", ".join(leave_out))
            return [], []
        own = {*self._files(), *(path.name for path in self._parts), *(place.index or "" for place in self._places), MANIFEST}
        limits = limits or self._limits
        return list_side_files(self.path, include_code, limits=limits, weights=own, leave_out=leave_out, follow_links=follow_links)

    def side_files(self) -> list[SideFile]:
        """List the side files of a folder that is only read, sorted by name, code and files of any size among them."""
        return self.list_side_files(include_code=True, limits=OF_THE_USER, follow_links=True)[0]

    def side_file(self, name: str) -> SideFile | None:
        """Return the file of this safe relative name, whatever its kind; none where there is none; a fault of the disk is an error."""
        path = self.path / name
        try:
            return SideFile.at(name, path) if self.is_folder and path.is_file() else None
        except OSError as error:
            refuse_fault(path, error)
            return None

    def weight_shards(self) -> list[tuple[str, list[str]]]:
        """Return the weight files in shard order, each with its tensors in the order of the file."""
        return [(name, list(tensors)) for name, tensors in self._shards]

    def weight_paths(self) -> list[Path]:
        """Return the paths of the weight files, in shard order; those of a distributed checkpoint after its metadata."""
        return [*(place.folder / name for place in self._places for name in place.files), *self._parts]

    def heads(self) -> tuple[Head, ...]:
        """Return the heads of the weight files, and of indices of shards, sorted by name; none where a file is of another kind.

        Raises:
            CheckpointError: A file was cut since it was opened, or cannot be read.
            LimitError: There are too many, or they are too long, for a pack.
        """
        return read_heads(self.path, self._head_sources, self._limits)

    def head(self, name: str) -> bytes | None:
        """Return the head of this name alone, none where there is none; raises as `heads`."""
        return read_head(self._head_sources[name], self._limits) if name in self._head_sources else None

    def _files(self) -> list[str]:
        """Return the names of the weight files, in shard order."""
        return [name for place in self._places for name in place.files]

    def close(self) -> None:
        """Close the files; reads fail from now on."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        self._sources = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_checkpoint(
    path: str | Path, limits: Limits = DEFAULT_LIMITS, weights: str | None = None, *, one_of_several: bool = False
) -> Checkpoint:
    """Open a Hugging Face folder, a `.safetensors` file, a PyTorch state dict or a folder of `torch.distributed.checkpoint`.

    Args:
        path: The folder or file.
        limits: Bounds on headers, names, shapes and side files.
        weights: What counts where a folder has `model.safetensors` and an index of shards, too; unless given they have to be the same.
        one_of_several: Whether `weights` may be for another checkpoint, which the caller checks.

    Raises:
        CheckpointError: It is malformed or damaged.
        NotACheckpointError: This is something else, such as an adapter, a pack or a GGUF file, or nothing to read was found.
        LimitError: It exceeds `limits`.
        RecipeError: `path` is no path, there is no such choice of weights, nothing to choose, or two models and nobody chose.
        UnsupportedError: An element type is unknown, or torch is needed and missing.
    """
    path = as_checkpoint("the checkpoint", path)
    note_named(path)
    located = locate_all(path, limits, weights)
    checkpoint = _open(path, located, limits)
    rivals = [(place, place.rival) for place in located.places if place.rival is not None]
    try:
        check_chosen(None if one_of_several else weights, checkpoint)
        for place, rival in rivals:
            with _open(path, Located((rival,)), limits) as other:
                check_rival(checkpoint, place, other, rival)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _open(path: Path, located: Located, limits: Limits) -> Checkpoint:
    """Open the files of a checkpoint."""
    with contextlib.ExitStack() as stack:
        parsed: list[list[ParsedFile]] = []
        for place in located.places:
            parsed.append([])
            for name in place.files:
                handle = open_to_read(place.folder / name)
                stack.callback(handle.close)
                _check_kind(handle, place.format)
                parsed[-1].append(prefixed(place.format.parse(handle, limits), place.prefix, path, limits))
        checkpoint = Checkpoint(path, located, parsed, limits)
        if are_lora(checkpoint.tensors):
            raise NotACheckpointError("these are the tensors of an adapter (LoRA), not of a whole model", path=path, hint=MERGE_LORA)
        stack.pop_all()
    return checkpoint


def _check_kind(file: Readable, row: WeightFormat) -> None:
    """Refuse a file that by its first bytes is of another kind than its name says."""
    kind = kind_of(file.read(0, min(HEAD_BYTES, file.size)), "")
    if kind is not None and kind.name not in row.kinds:
        what = f"this is {kind.text}, not what its name says"
        raise NotACheckpointError(what, path=file.path, expected=row.suffixes[0], hint=kind.as_checkpoint)
