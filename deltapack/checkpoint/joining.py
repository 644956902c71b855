"""What the files of one checkpoint say together: second names of tied tensors, free strings, and whether an index is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deltapack.checkpoint.locate import Location
from deltapack.checkpoint.metadata import declared_ties, free_strings
from deltapack.checkpoint.tensors import ParsedFile, TensorInfo
from deltapack.errors import CheckpointError

__all__ = ["aliases_of", "check_index", "strings_of"]


def aliases_of(path: Path, places: Sequence[Location], tensors: Mapping[str, TensorInfo], files: list[ParsedFile]) -> dict[str, str]:
    """Join the aliases of all files with those that safetensors headers, or an index, declare as {dropped: kept}."""
    aliases: dict[str, str] = {}
    said = [(place.prefix, place.metadata, None) for place in places] + [(file.prefix, file.metadata, file) for file in files]
    for prefix, metadata, file in said:
        declared = dict(file.aliases) if file is not None else {}
        if metadata:
            inside = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
            held = inside if file is None else {info.name.removeprefix(prefix) for info, _ in file.tensors}
            declared |= {prefix + name: prefix + kept for name, kept in declared_ties(metadata, held, inside).items()}
        for name, kept in declared.items():
            if name in tensors or aliases.setdefault(name, kept) != kept:
                raise CheckpointError("the tensor is in two shards", path=path, tensor=name)
    return dict(sorted(aliases.items()))


def strings_of(
    places: Sequence[Location], parsed: Sequence[Sequence[ParsedFile]], aliases: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the free strings by folder, and notes on keys for which the files of a folder have different ones."""
    strings: dict[str, dict[str, str]] = {}
    told: list[str] = []
    for place, own in zip(places, parsed, strict=True):
        start = len(place.prefix)
        ties = {name[start:]: kept[start:] for name, kept in aliases.items() if name.startswith(place.prefix)}
        joined, differ = free_strings([file.metadata for file in own], ties)
        strings |= {place.prefix[:-1]: joined} if joined else {}
        told += [
            f"the files {f'in {place.prefix} ' * bool(start)}have different metadata {key!r}; that of the first one counts"
            for key in differ
        ]
    return strings, told


def check_index(path: Path, location: Location, tensors: Mapping[str, TensorInfo], aliases: Mapping[str, str]) -> tuple[str, ...]:
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
    own = frozenset(location.files)
    unlisted = [name for name, info in tensors.items() if info.shard in own and name not in location.weight_map]
    if not unlisted:
        return ()
    return (f"{len(unlisted)} tensors are in the shards but not in the index, such as {unlisted[0]!r}; they were read",)
