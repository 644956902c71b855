"""Which tensor goes into which file of a written checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from deltapack.checking import as_count
from deltapack.dtypes import DType
from deltapack.errors import RecipeError
from deltapack.format.folders import folder_of

__all__ = ["NewTensor", "Shard", "parse_size", "plan_shards", "size_of"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", re.IGNORECASE | re.ASCII)
_SHARD_NAME = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; of a raw type, of bytes."""
        return self.dtype.count(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file to write.

    Attributes:
        file: Its name; in a sub-folder it begins with `prefix`.
        tensors: Its tensors in the order of their elements in the file; in a sub-folder their names begin with `prefix`.
        prefix: The path of the sub-folder and `/`.
        head: What stands before the elements, byte for byte; empty where it is made from the tensors.
    """

    file: str
    tensors: tuple[NewTensor, ...]
    prefix: str = ""
    head: bytes = b""

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)


def parse_size(text: str) -> int:
    """Return the bytes of a size in decimal units, as the Hugging Face tools count.

    >>> parse_size("5GB"), parse_size("0.5 mb")
    (5000000000, 500000)

    Raises:
        RecipeError: It is not a number above 0 with KB, MB, GB or TB.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS:
        raise RecipeError("not a size", expected="a number with KB, MB, GB or TB, such as 5GB", found=repr(text))
    whole, _, fraction = match[1].partition(".")
    size: int = int(whole + fraction) * _UNITS[unit] // 10 ** len(fraction)
    if size < 1:
        raise RecipeError("the size is too small", expected="at least one byte", found=repr(text))
    return size


def size_of(what: str, value: int | str) -> int:
    """Return a size in bytes that a caller gives as a number or a text.

    Raises:
        RecipeError: It is neither.
    """
    return parse_size(value) if isinstance(value, str) else as_count(what, value, 'a whole number of bytes, or text such as "5GB"')


def plan_shards(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]],
    *,
    like: Sequence[tuple[str, Sequence[str]]] | None = None,
    rename: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    folders: Mapping[str, str] = MappingProxyType({}),
) -> list[Shard]:
    """Distribute tensors over files, in each sub-folder on its own.

    With `max_shard_size`, files are filled in order and a larger tensor gets its own file. Otherwise each tensor
    goes where the base has it, and new ones into the last file. Files left empty are dropped, the rest is renumbered.

    Args:
        tensors: Name, dtype and shape of every tensor, tied ones once.
        like: The base's files with their tensors, as `Checkpoint.weight_shards` returns them.
        rename: From the name in the result to the name in the base, where they differ.
        max_shard_size: Bytes of tensors in a file.
        folders: Sub-folders that have tensors of their own, with the name of their weight file without suffix.

    Returns:
        At least one shard. Within a shard wider types come first, so that every tensor is aligned, as readers want it.

    Raises:
        RecipeError: `max_shard_size` is below 1, or two tensors have one name.
    """
    new = [NewTensor(*tensor) for tensor in tensors]
    if len({tensor.name for tensor in new}) != len(new):
        raise RecipeError("two tensors to write have one name")
    if max_shard_size is not None and max_shard_size < 1:
        raise RecipeError("the shard size is out of range", expected="at least 1", found=max_shard_size)
    groups: dict[str, list[NewTensor]] = {folder: [] for folder in ("", *sorted(folders))}
    for tensor in new:
        groups[folder_of(tensor.name, folders)].append(tensor)
    shards: list[Shard] = []
    for folder, own in groups.items():
        if own or not folders:
            prefix, stem = f"{folder}/" if folder else "", folders.get(folder, "model")
            there = [(file, names) for file, names in like or [] if file.rpartition("/")[0] == folder]
            shards += _plan_folder(own, there, rename or {}, max_shard_size, prefix, stem)
    return shards


def _plan_folder(
    new: Sequence[NewTensor],
    like: Sequence[tuple[str, Sequence[str]]],
    rename: Mapping[str, str],
    max_shard_size: int | None,
    prefix: str,
    stem: str,
) -> list[Shard]:
    """Distribute the tensors of one folder over its files."""
    ordered, place_of = _in_base_order(new, like, rename)
    if max_shard_size is not None:
        return _named(_greedy(ordered, max_shard_size), prefix, stem)
    groups: list[list[NewTensor]] = [[] for _ in range(max(1, len(like)))]
    for tensor in ordered:
        groups[place_of.get(tensor.name, len(groups) - 1)].append(tensor)
    names = [name for name, _ in like]
    if names and all(groups) and _can_keep(names, prefix, stem):
        return [_shard(name, group, prefix) for name, group in zip(names, groups, strict=True)]
    return _named([group for group in groups if group], prefix, stem)


def _can_keep(names: Sequence[str], prefix: str, stem: str) -> bool:
    """Whether loaders will find these files: a single file without number, or numbered ones of one family."""
    pattern = re.compile(rf"({re.escape(prefix + stem)})(-\d+-of-\d+)?\.safetensors") if prefix else _SHARD_NAME
    matches = [pattern.fullmatch(name) for name in names]
    families = {match and match[1] for match in matches}
    return len(families) == 1 and all(match and bool(match[2]) == (len(names) > 1) for match in matches)


def _in_base_order(
    tensors: Sequence[NewTensor], like: Sequence[tuple[str, Sequence[str]]], rename: Mapping[str, str]
) -> tuple[list[NewTensor], dict[str, int]]:
    """Return the tensors in the base's order, new ones last, and the shard of each that the base has."""
    position = {name: (shard, at) for shard, (_, names) in enumerate(like) for at, name in enumerate(names)}
    places = {tensor.name: position.get(rename.get(tensor.name, tensor.name)) for tensor in tensors}
    after_all = (len(like), 0)
    ordered = sorted(tensors, key=lambda tensor: places[tensor.name] or after_all)
    return ordered, {name: place[0] for name, place in places.items() if place is not None}


def _greedy(tensors: Sequence[NewTensor], limit: int) -> list[list[NewTensor]]:
    groups: list[list[NewTensor]] = []
    open_group: list[NewTensor] = []
    used = 0
    for tensor in tensors:
        if tensor.nbytes > limit:
            groups.append([tensor])
            continue
        if open_group and used + tensor.nbytes > limit:
            groups.append(open_group)
            open_group, used = [], 0
        open_group.append(tensor)
        used += tensor.nbytes
    return [*groups, open_group] if open_group else groups


def _named(groups: Sequence[Sequence[NewTensor]], prefix: str, stem: str) -> list[Shard]:
    if len(groups) < 2:
        return [_shard(f"{prefix}{stem}.safetensors", groups[0] if groups else (), prefix)]
    return [_shard(f"{prefix}{stem}-{at:05d}-of-{len(groups):05d}.safetensors", group, prefix) for at, group in enumerate(groups, 1)]


def _shard(name: str, tensors: Sequence[NewTensor], prefix: str) -> Shard:
    return Shard(name, tuple(sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)), prefix)
