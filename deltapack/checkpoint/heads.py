"""Heads: what weight files hold besides elements, byte for byte, and what stands in its place where nobody keeps it.

The head of a safetensors file is the length and the header in front of its elements; the head of an index of shards is the whole file.
With the elements in the order that a head says, a file is again what it was, whoever wrote it: order of the header, metadata, padding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.folders import moved
from deltapack.checkpoint.formats import FORMATS
from deltapack.checkpoint.joining import check_index
from deltapack.checkpoint.layout import NewTensor, Shard
from deltapack.checkpoint.locate import Location, location_of_map
from deltapack.checkpoint.metadata import PLAIN, Strings, of_file
from deltapack.checkpoint.safetensors import header_bytes, parse_head
from deltapack.checkpoint.tensors import Layout, ParsedFile, TensorInfo
from deltapack.errors import CheckpointError, FormatError, LimitError, UnsupportedError
from deltapack.format.folders import folder_of, is_index_of_shards
from deltapack.limits import DEFAULT_LIMITS, Limits
from deltapack.sources.reading import Readable

__all__ = ["BARE", "Head", "new_head", "new_indices", "read_head", "read_heads", "shards_of_heads", "sources_of_heads"]

BARE = "model.safetensors"
"""Under which name the head of a checkpoint goes that is one file: what that is called is no part of it."""
_HEADED = next(row for row in FORMATS if row.headed)


@dataclass(frozen=True)
class Head:
    """A head by the name of its file, relative to the checkpoint, with `/`."""

    name: str
    data: bytes


def sources_of_heads(places: Sequence[Location], parsed: Sequence[Sequence[ParsedFile]], is_folder: bool) -> dict[str, Readable | Path]:
    """Return where the heads of a checkpoint are, by name: open weight files, and paths of indices; none where a file has no head."""
    if not all(place.format.headed for place in places):
        return {}
    sources: dict[str, Readable | Path] = {}
    for place, files in zip(places, parsed, strict=True):
        names = place.files if is_folder else [BARE]
        sources |= zip(names, (handle for file in files for handle in file.handles), strict=True)
        sources |= {} if place.index is None else {place.index: place.folder / place.index}
    return sources


def read_head(source: Readable | Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the head of an open safetensors file, or the content of an index.

    Raises:
        CheckpointError: The file ends before, or cannot be read.
        LimitError: It exceeds `limits`.
    """
    file = open_to_read(source) if isinstance(source, Path) else source
    try:
        length = file.size if isinstance(source, Path) else int.from_bytes(file.read(0, 8), "little")
        if length > limits.header_bytes:
            raise LimitError("the head is too long", path=file.path, expected=f"at most {limits.header_bytes} bytes", found=length)
        return file.read(0, length if isinstance(source, Path) else 8 + length)
    finally:
        if isinstance(source, Path):
            file.close()


def read_heads(path: Path, sources: Mapping[str, Readable | Path], limits: Limits = DEFAULT_LIMITS) -> tuple[Head, ...]:
    """Return all heads of a checkpoint, sorted by name.

    Raises:
        CheckpointError: A file ends before, or cannot be read.
        LimitError: There are too many, or they are too long, for a pack.
    """
    if len(sources) > limits.heads:
        raise LimitError("too many weight files", path=path, expected=f"at most {limits.heads}", found=len(sources))
    heads, total = [], 0
    for name in sorted(sources, key=str.encode):
        heads.append(Head(name, read_head(sources[name], limits)))
        total += len(heads[-1].data)
        if total > limits.heads_bytes:
            found = f"{total} bytes and more"
            raise LimitError("the heads of the weight files are too long", path=path, expected=f"at most {limits.heads_bytes}", found=found)
    return tuple(heads)


def _check_values(heads: Sequence[Head], tensors: int, path: Path, limits: Limits) -> None:
    """Refuse heads that would unfold to far more than their tensors need, before they are parsed.

    Raises:
        LimitError: They hold too many values.
    """
    values, most = sum(head.data.count(mark) for head in heads for mark in b",[{"), limits.head_values + 32 * tensors
    if values > most:
        what = "the heads of the weight files hold too many values"
        raise LimitError(what, path=path, expected=f"at most {most} commas and brackets", found=values)


def shards_of_heads(
    heads: Sequence[Head],
    tensors: Iterable[Layout],
    *,
    path: Path,
    aliases: Mapping[str, str] = MappingProxyType({}),
    folders: Collection[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[list[Shard], list[Head]]:
    """Return the files that heads are those of, if these speak of exactly the tensors to write.

    Args:
        heads: The heads of all weight files, and of the indices of those that are shards.
        tensors: What is to be written, tied tensors once.
        path: Where the heads are from, for errors.
        aliases: From second names of tied tensors to the names that are written.
        folders: Sub-folders that have tensors of their own.
        limits: Bounds on headers, names and shapes.

    Returns:
        The files with their heads and their tensors in the order of the elements, and the heads of indices.

    Raises:
        FormatError: A head is damaged; or they say something else than the tensors, or than each other (rule R9).
        LimitError: A head exceeds `limits`.
    """
    wanted = {tensor.name: tensor for tensor in tensors}
    _check_values(heads, len(wanted), path, limits)
    shards, infos = list[Shard](), dict[str, TensorInfo]()
    for head in heads:
        if is_index_of_shards(head.name):
            continue
        with _as_format_error(head.name, path):
            shard, own = _shard_of(head, wanted, folders, limits)
            twice = next((info.name for info in own if info.name in infos), None)
            if twice is not None:
                raise CheckpointError("a tensor is in two weight files", tensor=twice, found=f"{infos[twice].shard} and {head.name}")
        shards.append(shard)
        infos |= {info.name: info for info in own}
    missing = next((name for name in wanted if name not in infos), None)
    if missing is not None:
        raise FormatError("no head of a weight file speaks of a tensor", path=path, tensor=missing, rule="R9")
    indices = [head for head in heads if is_index_of_shards(head.name)]
    for prefix in dict.fromkeys(_split(head.name)[0] for head in heads):
        own_indices = [head for head in indices if _split(head.name)[0] == prefix]
        files = tuple(sorted(shard.file for shard in shards if shard.prefix == prefix))
        if len(own_indices) > 1 or len(files) > 1 > len(own_indices) or not files:
            found = f"{len(files)} weight files and {len(own_indices)} indices in {prefix or 'the top folder'!r}"
            raise FormatError("the weight files of a folder do not go together", path=path, found=found, rule="R9")
        for head in own_indices:
            with _as_format_error(head.name, path):
                _check_index(head, files, infos, aliases)
    return shards, indices


def _split(path: str) -> tuple[str, str]:
    """Return the folder of a file, with a `/` behind it unless it is the top, and the name there."""
    folder, slash, name = path.rpartition("/")
    return folder + slash, name


def _shard_of(head: Head, wanted: Mapping[str, Layout], folders: Collection[str], limits: Limits) -> tuple[Shard, list[TensorInfo]]:
    """Return the file of a head, and what it says of each tensor.

    Raises:
        CheckpointError: It is malformed, or does not fit what is to be written.
    """
    prefix, _ = _split(head.name)
    tensors, infos = list[NewTensor](), list[TensorInfo]()
    for inside in parse_head(head.data, Path(head.name), limits):
        info = replace(inside, name=prefix + inside.name, shard=head.name)
        tensor = wanted.get(info.name)
        if tensor is None or folder_of(info.name, folders) != prefix[:-1]:
            raise CheckpointError("it speaks of a tensor that is not to be in this file", tensor=info.name)
        wide = tensor.dtype.count(tensor.shape) * tensor.dtype.itemsize  # a raw type without elements may be of any width
        if (tensor.dtype.safetensors, tuple(tensor.shape), wide) != (info.dtype.safetensors, info.shape, info.nbytes):
            expected, found = f"{tensor.dtype} {list(tensor.shape)}", f"{info.dtype} {list(info.shape)}"
            raise CheckpointError("it says another type or shape", tensor=info.name, expected=expected, found=found)
        tensors.append(NewTensor(info.name, tensor.dtype, info.shape))
        infos.append(info)
    return Shard(head.name, tuple(tensors), prefix, head.data), infos


def _check_index(head: Head, files: tuple[str, ...], infos: Mapping[str, TensorInfo], aliases: Mapping[str, str]) -> None:
    """Check the head of an index against those of its shards.

    Raises:
        CheckpointError: It is malformed, or does not fit them.
    """
    prefix, name = _split(head.name)
    inside = location_of_map(head.data, Path(), name, _HEADED)
    found = moved(inside, Path(), prefix) if prefix else inside
    if found.files != files:
        raise CheckpointError("it names other weight files", expected=", ".join(files[:4]), found=", ".join(found.files[:4]))
    check_index(Path(head.name), found, infos, aliases)


@contextmanager
def _as_format_error(name: str, path: Path) -> Iterator[None]:
    """Make an error about a head one about where it is from."""
    try:
        yield
    except (CheckpointError, UnsupportedError) as error:
        raise FormatError(
            f"the head of the weight file {name!r} cannot be used: {error.what}",
            path=path,
            tensor=error.tensor,
            expected=error.expected,
            found=error.found,
            rule="R9",
        ) from error


def new_head(shard: Shard, aliases: Mapping[str, str], metadata: Strings) -> bytes:
    """Return the head of a file to write: its own, or one that is made of its tensors.

    Args:
        shard: The file.
        aliases: From the second names of tied tensors to the names that are written.
        metadata: Free strings, by folder.

    Raises:
        LimitError: It would be longer than any reader takes.
    """
    if shard.head:
        return shard.head
    own = {tensor.name for tensor in shard.tensors}
    start = len(shard.prefix)
    tied = {name[start:]: kept[start:] for name, kept in aliases.items() if kept in own}
    inside = [replace(tensor, name=tensor.name[start:]) for tensor in shard.tensors] if start else shard.tensors
    head, most = header_bytes(inside, of_file(metadata.get(shard.prefix[:-1], PLAIN), tied)), DEFAULT_LIMITS.header_bytes
    if len(head) > most + 8:  # nobody could read the file
        what, hint = f"the header of {shard.file} would be too long", "Smaller shards have shorter headers: --max-shard-size."
        raise LimitError(what, expected=f"at most {most:,} bytes", found=f"{len(head) - 8:,}", hint=hint)
    return head


def new_indices(shards: Sequence[Shard]) -> list[Head]:
    """Return an index for each folder that has several of the files to write."""
    by_folder: dict[str, list[Shard]] = {}
    for shard in shards:
        by_folder.setdefault(shard.prefix, []).append(shard)
    return [_new_index(prefix, own) for prefix, own in by_folder.items() if len(own) > 1]


def _new_index(prefix: str, shards: Sequence[Shard]) -> Head:
    """Return the index of the shards of a folder."""
    start = len(prefix)
    weight_map = {tensor.name[start:]: shard.file[start:] for shard in shards for tensor in shard.tensors}
    index = {"metadata": {"total_size": sum(shard.nbytes for shard in shards)}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    stem = re.sub(r"-\d+-of-\d+\.safetensors$", "", shards[0].file)
    return Head(f"{stem}.safetensors.index.json", text.encode())
