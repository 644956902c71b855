"""Which files make up a checkpoint: a folder's weights in order of preference, or one bare file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltapack.checkpoint.begun import check_finished
from deltapack.checkpoint.distributed import METADATA, SHARD
from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.formats import DISTRIBUTED, FORMATS, WeightFormat, format_of
from deltapack.checkpoint.safetensors import load_json
from deltapack.errors import CheckpointError, LimitError, NotACheckpointError, RecipeError
from deltapack.kinds import ADAPTER, MERGE_LORA, hub_hint, kind_of_folder, kind_of_path
from deltapack.limits import Limits

__all__ = ["Location", "locate", "location_of_index", "location_of_map", "nothing_found", "one_of_two", "search_folder"]

CHOICES = ("index", "single")
"""What counts where a folder has one file and an index of shards: the shards, or the file."""

_META = re.compile(r"consolidated\.\d+\.pth")
_SHARD = re.compile(r"-\d+-of-\d+\.")
_OF_TRAINER = re.compile(r"pytorch_model_fsdp_\d+")
"""The folder in a checkpoint of transformers' Trainer, or of accelerate, where a sharded model lies."""


@dataclass(frozen=True)
class Location:
    """The weight files of a checkpoint.

    Attributes:
        folder: Where they are.
        files: Their names, in shard order.
        format: What reads them.
        weight_map: From tensor name to file name, where there is an index.
        index: Name of that index, or of one that lists a file that is alone.
        notes: What the user should be told about the choice.
        metadata: Strings that the index says besides.
        rival: The shards of an index, where one file and an index are there and nobody said which counts.
        chosen: Whether the choice that the user made decided on it.
        prefix: The sub-folder that the files are in, with a `/` at its end; the names of files and tensors begin with it.
    """

    folder: Path
    files: tuple[str, ...]
    format: WeightFormat
    weight_map: Mapping[str, str] | None = None
    index: str | None = None
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    rival: Location | None = None
    chosen: bool = False
    prefix: str = ""


def locate(path: Path) -> Location:
    """Find the weights of a checkpoint that is one file.

    Raises:
        CheckpointError: There is no such file.
        NotACheckpointError: It is no checkpoint.
    """
    if not path.exists() and not path.is_symlink():
        raise NotACheckpointError("no such file or folder", path=path, hint=hub_hint(path))
    name = path.name
    if ADAPTER.fullmatch(name):
        raise NotACheckpointError("this is an adapter, not a checkpoint", path=path, hint=MERGE_LORA)
    if _META.fullmatch(name):
        raise NotACheckpointError("this is one slice of Meta's own format", path=path, hint="Convert it to a Hugging Face folder.")
    if name.endswith(".index.json"):
        raise NotACheckpointError("this is the index of a sharded checkpoint", path=path, hint="Name its folder instead.")
    if name == METADATA or name.endswith(SHARD):
        raise NotACheckpointError("this is a part of a distributed checkpoint", path=path, hint="Name its folder instead.")
    row = format_of(name)
    if row is None:
        kind = kind_of_path(path)
        if kind is not None:
            raise NotACheckpointError(f"this is {kind.text}, not a checkpoint", path=path, hint=kind.as_checkpoint)
        expected = _either(["a folder", *dict.fromkeys(suffix for row in FORMATS for suffix in row.suffixes)])
        hint = "Name the folder of the model, or its file of weights."
        raise NotACheckpointError("not a checkpoint", path=path, expected=expected, found=path.suffix or name, hint=hint)
    return Location(path.parent, (name,), row)


def search_folder(folder: Path, limits: Limits, choice: str | None = None) -> tuple[Location | None, list[str]]:
    """Find the weights that a folder itself holds, if any; return also the names of what is in it.

    Args:
        folder: The folder.
        limits: Bounds on the index.
        choice: What counts where it has one file and an index of shards, too: `"single"` or `"index"`.

    Raises:
        CheckpointError: The choice is not unique, the index is malformed, or an upload of the folder was not finished.
        LimitError: The index exceeds `limits`.
        RecipeError: There is no such choice.
    """
    if choice not in (None, *CHOICES):
        raise RecipeError("the choice of weights is unknown", expected="index or single", found=choice)
    try:
        listed = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise NotACheckpointError(f"cannot list the folder: {error.strerror or error}", path=folder) from error
    check_finished(folder, listed)
    names = [name for name in listed if not name.startswith(".")]
    for row in FORMATS:
        found = _of_format(folder, names, row, limits, choice)
        if found is not None:
            return found, names
    return _distributed(folder, names), names


def _distributed(folder: Path, names: Sequence[str]) -> Location | None:
    """Find a distributed checkpoint: in the folder itself, or in the one below where a trainer puts the model."""
    below = [name for name in names if _OF_TRAINER.fullmatch(name) and (folder / name / METADATA).is_file()]
    if (folder / METADATA).is_file() and any(name.endswith(SHARD) for name in names):
        return Location(folder, (METADATA,), DISTRIBUTED)
    if len(below) > 1:
        found, hint = ", ".join(below), "Name one of these folders."
        raise NotACheckpointError("the folder holds several distributed checkpoints", path=folder, found=found, hint=hint)
    return Location(folder / below[0], (METADATA,), DISTRIBUTED, notes=(f"the weights are those in {below[0]}",)) if below else None


def _of_format(folder: Path, names: list[str], row: WeightFormat, limits: Limits, choice: str | None) -> Location | None:
    """Find the weights of one format; none where the folder has none."""
    if row.whole in names:
        single = Location(folder, (row.whole,), row)
        return one_of_two(single, row.index, names, limits, choice)[0] if row.index in names else single
    if row.index in names:
        return location_of_index(folder, row.index, row, limits)
    if not row.any_name:
        return None
    indices = [name for name in names if name.endswith(tuple(f"{suffix}.index.json" for suffix in row.suffixes))]
    loose = [name for name in names if name.endswith(row.suffixes) and not ADAPTER.fullmatch(name) and not name.startswith("consolidated")]
    if len(indices) == 1:
        whole = indices[0].removesuffix(".index.json")
        if whole in names:
            return one_of_two(Location(folder, (whole,), row), indices[0], names, limits, choice)[0]
        return location_of_index(folder, indices[0], row, limits)
    if len(loose) == 1 and not indices and not re.search(r"-of-0*([2-9]|[1-9]\d+)\.", loose[0]):
        return Location(folder, tuple(loose), row)
    if not loose and not indices:
        return None
    shards = not indices and all(map(_SHARD.search, loose))
    raise (CheckpointError if shards else NotACheckpointError)(
        "the index of the shards is missing" if shards else "the weights are not unique",
        path=folder,
        expected=f"{row.whole} or {row.index}",
        found=", ".join([*indices, *loose][:4]),
        hint="Was the download complete?" if shards else "Name one file.",
    )


def one_of_two(single: Location, index: str, names: Collection[str], limits: Limits, choice: str | None) -> tuple[Location, frozenset[str]]:
    """Choose between a file and an index beside it: as the user says, else the file, as loaders do, with the shards as its rival.

    Returns:
        The choice, and the names of all files that belong to one of the two.

    Raises:
        CheckpointError: The index is malformed.
        LimitError: The index exceeds `limits`.
    """
    whole = single.files[0]
    if choice == "single":
        return replace(single, notes=(f"{whole} was read, not {index}",), chosen=True), _of_index(single, index, limits)
    shards = location_of_index(single.folder, index, single.format, limits)
    known = frozenset((whole, *shards.files))
    if choice == "index":
        return replace(shards, notes=(f"{index} was read, not {whole}",), chosen=True), known
    own, there = shards.files == (whole,), any(name in names for name in shards.files)
    why = "has the same weights" if there else "names shards that are not there"
    note, rival = f"{whole} was read; {index} beside it {why}", shards if there and not own else None
    return replace(single, index=index if own else None, notes=(note,), rival=rival), known


def _of_index(single: Location, index: str, limits: Limits) -> frozenset[str]:
    """Return the names of a file and of the shards beside it; of an index that cannot be read, which nobody chose, all that may be its."""
    try:
        return frozenset((*single.files, *location_of_index(single.folder, index, single.format, limits).files))
    except (CheckpointError, LimitError):
        stem = index.removesuffix(".index.json").removesuffix(single.format.suffixes[0])
        names = [entry.name for entry in single.folder.iterdir()]
        return frozenset((*single.files, *(name for name in names if name.startswith(stem) and _SHARD.search(name))))


def location_of_index(folder: Path, name: str, row: WeightFormat, limits: Limits) -> Location:
    """Read an index; a shard must be a plain name, so that no index reaches out of its folder.

    Raises:
        CheckpointError: It is malformed.
        LimitError: It exceeds `limits`.
    """
    path = folder / name
    file = open_to_read(path)
    try:
        if file.size > limits.header_bytes:
            raise LimitError("the index is too long", path=path, expected=f"at most {limits.header_bytes}", found=file.size)
        return location_of_map(file.read(0, file.size), folder, name, row)
    finally:
        file.close()


def location_of_map(raw: bytes, folder: Path, name: str, row: WeightFormat) -> Location:
    """Parse the content of an index of this name.

    Raises:
        CheckpointError: It is malformed.
    """
    path = folder / name
    document = load_json(raw, path)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", path=path, found=type(weight_map).__name__)
    for tensor, shard in weight_map.items():
        plain = isinstance(shard, str) and re.fullmatch(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*", shard)
        if not plain or not shard.endswith(row.suffixes):
            raise CheckpointError(
                "the index names a file that cannot be a shard",
                path=path,
                tensor=tensor,
                expected=f"a plain name ending in {' or '.join(row.suffixes)}",
                found=repr(shard),
            )
    says = document.get("metadata")
    metadata = {key: text for key, text in says.items() if isinstance(text, str)} if isinstance(says, dict) else {}
    return Location(folder, tuple(sorted(set(weight_map.values()))), row, weight_map, name, metadata=metadata)


def nothing_found(folder: Path, names: list[str], inner: list[str]) -> NotACheckpointError:
    """Return the error for a folder without weights; `inner` are sub-folders that have some, but are not known to be parts of one model."""
    found = kind_of_folder(folder, names)
    what, hint = found if found is not None else ("no weights in the folder", None)
    if found is None and inner:
        hint = f"Weights are in {', '.join(inner[:4])}; name that folder."
    expected = _either([name for row in FORMATS for name in row.names])
    return NotACheckpointError(what, path=folder, expected=expected, found=", ".join(names[:8]) or "nothing", hint=hint)


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
