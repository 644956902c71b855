"""A checkpoint opened for reading: every tensor known, none loaded."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
import numpy.typing as npt

from deltapack.checking import as_path
from deltapack.checkpoint.arranging import ArrangedSource, Tiles
from deltapack.checkpoint.files import ReadFile
from deltapack.checkpoint.locate import Location, locate
from deltapack.checkpoint.metadata import declared_ties, free_strings
from deltapack.checkpoint.rivals import first_difference
from deltapack.checkpoint.sidefiles import LeftOut, SideFile, list_side_files
from deltapack.checkpoint.tensors import FileSource, ParsedFile, Source, TensorInfo, check_count
from deltapack.errors import CheckpointError
from deltapack.format.arrangement import Arrangement
from deltapack.limits import DEFAULT_LIMITS, Limits

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]


class Checkpoint:
    """A Hugging Face folder or one weight file; made by `open_checkpoint`, closed as a context manager.

    Reads are by element range and safe from any number of threads.

    Attributes:
        path: As given to `open_checkpoint`.
        is_folder: Whether it is a folder.
        tensors: From name to tensor, sorted by name; of tied tensors only the first.
        aliases: From the second name of a tied tensor to the name in `tensors`.
        metadata: Free strings of the safetensors headers, without ties: those of all files together.
        notes: What the user should be told about how it was read.
        files: The checkpoint as its files hold it: itself, but for one that `with_arranged` returned.
    """

    def __init__(self, path: Path, location: Location, files: list[ParsedFile], limits: Limits) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self._location = location
        self._limits = limits
        self._handles = [handle for file in files for handle in file.handles]
        self._sources: dict[str, Source] = {}
        self._shards = [(name, [info.name for info, _ in file.tensors]) for name, file in zip(location.files, files, strict=True)]
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for info, source in file.tensors:
                if info.name in tensors:
                    found = f"{tensors[info.name].shard} and {info.shard}"
                    raise CheckpointError("the tensor is in two shards", path=path, tensor=info.name, found=found)
                tensors[info.name] = info
                self._sources[info.name] = source
        check_count(path, len(tensors), limits)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sorted(tensors.items())))
        self.aliases: Mapping[str, str] = MappingProxyType(_aliases(path, location, tensors, files))
        strings, differ = free_strings([file.metadata for file in files], self.aliases)
        self.metadata: Mapping[str, str] = MappingProxyType(strings)
        self.files = self
        unlisted = _check_index(path, location, tensors, self.aliases)
        told = [f"the files have different metadata {key!r}; that of the first one counts" for key in differ]
        self.notes: tuple[str, ...] = (*location.notes, *unlisted, *told, *(note for file in files for note in file.notes))

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
        if not self._handles:
            raise CheckpointError("the checkpoint is closed", path=self.path)
        if len(out):
            self._sources[info.name].read_into(start, out)

    def file_range(self, name: str, start: int) -> tuple[ReadFile, int] | None:
        """Return the file that holds a tensor's elements one after another and the offset of element `start`; none if no file does."""
        info = self._find(name)
        source = self._sources.get(info.name)
        return (source.file, source.offset + start * info.dtype.itemsize) if isinstance(source, FileSource) else None

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

    def list_side_files(self, include_code: bool = False) -> tuple[list[SideFile], list[LeftOut]]:
        """List what travels beside the weights, and everything that does not; both empty for a bare file.

        Raises:
            LimitError: The files together exceed the limits.
        """
        if not self.is_folder:
            return [], []
        own = {*self._location.files, self._location.index or ""}
        return list_side_files(self.path, include_code, limits=self._limits, weights=own)

    def side_files(self, include_code: bool = False) -> list[SideFile]:
        """List what travels beside the weights, sorted by name."""
        return self.list_side_files(include_code)[0]

    def weight_shards(self) -> list[tuple[str, list[str]]]:
        """Return the weight files in shard order, each with its tensors in the order of the file."""
        return [(name, list(tensors)) for name, tensors in self._shards]

    def weight_paths(self) -> list[Path]:
        """Return the paths of the weight files, in shard order."""
        return [self._location.folder / name for name in self._location.files]

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


def open_checkpoint(path: str | Path, limits: Limits = DEFAULT_LIMITS, weights: str | None = None) -> Checkpoint:
    """Open a Hugging Face folder, a `.safetensors` file or a PyTorch state dict.

    Args:
        path: The folder or file.
        limits: Bounds on headers, names, shapes and side files.
        weights: What counts where a folder has `model.safetensors` and an index of shards, too; unless given they have to be the same.

    Raises:
        CheckpointError: Nothing to read was found, it is malformed, or a folder has two models.
        LimitError: It exceeds `limits`.
        RecipeError: `path` is no path, or there is no such choice of weights.
        UnsupportedError: An element type is unknown, or torch is needed and missing.
    """
    path = as_path("the checkpoint", path)
    location = locate(path, limits, weights)
    checkpoint = _open(path, location, limits)
    if location.rival is not None:
        try:
            with _open(path, location.rival, limits) as other:
                _check_rival(checkpoint, location.files[0], other, location.rival)
        except BaseException:
            checkpoint.close()
            raise
    return checkpoint


def _check_rival(checkpoint: Checkpoint, file: str, other: Checkpoint, rival: Location) -> None:
    """Require that shards beside a file hold the same tensors.

    Raises:
        CheckpointError: They do not.
    """
    name = first_difference(checkpoint, other)
    if name is not None:
        raise CheckpointError(
            "the folder holds two models: a file, and shards that differ from it",
            path=checkpoint.path,
            tensor=name,
            expected=f"the same in {file} and in the shards of {rival.index} ({', '.join(rival.files[:2])})",
            found=_both(checkpoint.tensors.get(name), other.tensors.get(name)),
            hint="Delete one of them, or choose: --weights single reads the file, --weights index the shards (weight_files= in Python).",
        )


def _both(one: TensorInfo | None, other: TensorInfo | None) -> str:
    if one is None or other is None:
        return f"it only in {'the shards' if one is None else 'the file'}"
    kinds = [f"{info.dtype} {list(info.shape)}" for info in (one, other)]
    return "other elements" if kinds[0] == kinds[1] else " and ".join(kinds)


def _open(path: Path, location: Location, limits: Limits) -> Checkpoint:
    """Open the files of a checkpoint."""
    with contextlib.ExitStack() as stack:
        files: list[ParsedFile] = []
        for name in location.files:
            handle = ReadFile(location.folder / name)
            stack.callback(handle.close)
            files.append(location.format.parse(handle, limits))
        checkpoint = Checkpoint(path, location, files, limits)
        stack.pop_all()
    return checkpoint


def _aliases(path: Path, location: Location, tensors: Mapping[str, TensorInfo], files: list[ParsedFile]) -> dict[str, str]:
    """Join the aliases of all files with those that safetensors headers, or the index, declare as {dropped: kept}."""
    aliases = declared_ties(location.metadata, tensors, tensors)
    for file in files:
        declared = declared_ties(file.metadata, {info.name for info, _ in file.tensors}, tensors) if file.metadata else {}
        for name, kept in {**declared, **file.aliases}.items():
            if name in tensors or aliases.setdefault(name, kept) != kept:
                raise CheckpointError("the tensor is in two shards", path=path, tensor=name)
    return dict(sorted(aliases.items()))


def _check_index(path: Path, location: Location, tensors: Mapping[str, TensorInfo], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """Check the index against the headers; return notes on tensors that it forgot, which are read."""
    if location.weight_map is None:
        return ()
    for name, shard in location.weight_map.items():
        info = tensors.get(aliases.get(name, name))
        if info is None or (info.shard != shard and name in tensors):
            raise CheckpointError(
                "the index and the shards disagree",
                path=path,
                tensor=name,
                expected=f"the tensor in {shard}",
                found="no such tensor" if info is None else info.shard,
                hint="The shards are of different versions: download the checkpoint again.",
            )
    unlisted = [name for name in tensors if name not in location.weight_map]
    if not unlisted:
        return ()
    return (f"{len(unlisted)} tensors are in the shards but not in the index, such as {unlisted[0]!r}; they were read",)
