"""Which files make up a checkpoint: a folder's weights in order of preference, or one bare file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltapack.checkpoint.files import ReadFile
from deltapack.checkpoint.formats import FORMATS, WeightFormat, format_of
from deltapack.checkpoint.safetensors import load_json
from deltapack.errors import CheckpointError, LimitError, RecipeError
from deltapack.limits import Limits

__all__ = ["Location", "locate"]

CHOICES = ("index", "single")
"""What counts where a folder has one file and an index of shards: the shards, or the file."""

_ADAPTER = re.compile(r"adapter_(model|config).*")
_META = re.compile(r"consolidated\.\d+\.pth")
_MERGE_LORA = (
    "Merge the LoRA into its base first (peft: PeftModel.from_pretrained(base, adapter).merge_and_unload()) and save the whole model."
)


@dataclass(frozen=True)
class Location:
    """The weight files of a checkpoint.

    Attributes:
        folder: Where they are.
        files: Their names, in shard order.
        format: What reads them.
        weight_map: From tensor name to file name, where there is an index.
        index: Name of that index.
        notes: What the user should be told about the choice.
        metadata: Strings that the index says besides.
        rival: The shards of an index, where one file and an index are there and nobody said which counts.
    """

    folder: Path
    files: tuple[str, ...]
    format: WeightFormat
    weight_map: Mapping[str, str] | None = None
    index: str | None = None
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    rival: Location | None = None


def locate(path: Path, limits: Limits, choice: str | None = None) -> Location:
    """Find the weights of a checkpoint.

    Args:
        path: The folder or file.
        limits: Bounds on the index.
        choice: What counts where a folder has one file and an index of shards, too.

    Raises:
        CheckpointError: There are none, the choice is not unique, or the index is malformed.
        LimitError: The index exceeds `limits`.
        RecipeError: There is no such choice.
    """
    if choice not in (None, *CHOICES):
        raise RecipeError("the choice of weights is unknown", expected="index or single", found=choice)
    if path.is_dir():
        return _locate_in_folder(path, limits, choice)
    if not os.path.lexists(path):
        raise CheckpointError(
            "no such file or folder",
            path=path,
            hint="A model on the Hugging Face hub must be downloaded first: hf download",
        )
    name = path.name
    if _ADAPTER.fullmatch(name):
        raise CheckpointError("this is an adapter, not a checkpoint", path=path, hint=_MERGE_LORA)
    if _META.fullmatch(name):
        raise CheckpointError("this is one slice of Meta's own format", path=path, hint="Convert it to a Hugging Face folder.")
    if name.endswith(".index.json"):
        raise CheckpointError("this is the index of a sharded checkpoint", path=path, hint="Name its folder instead.")
    row = format_of(name)
    if row is None:
        gguf = path.suffix.lower() == ".gguf"
        hint = "Use the safetensors checkpoint that it was made from." if gguf else None
        expected = _either(["a folder", *(suffix for row in FORMATS for suffix in row.suffixes)])
        raise CheckpointError("not a checkpoint", path=path, expected=expected, found=path.suffix or name, hint=hint)
    return Location(path.parent, (name,), row)


def _locate_in_folder(folder: Path, limits: Limits, choice: str | None) -> Location:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"cannot list the folder: {error.strerror or error}", path=folder) from error
    for row in FORMATS:
        found = _of_format(folder, names, row, limits, choice)
        if found is not None:
            return found
    raise _nothing_found(folder, names)


def _of_format(folder: Path, names: list[str], row: WeightFormat, limits: Limits, choice: str | None) -> Location | None:
    """Find the weights of one format; none where the folder has none."""
    if row.whole in names:
        single = Location(folder, (row.whole,), row)
        return _one_of_two(single, row.index, names, limits, choice) if row.index in names else single
    if row.index in names:
        return _from_index(folder, row.index, row, limits)
    if not row.any_name:
        return None
    indices = [name for name in names if name.endswith(tuple(f"{suffix}.index.json" for suffix in row.suffixes))]
    loose = [name for name in names if name.endswith(row.suffixes) and not _ADAPTER.fullmatch(name) and not name.startswith("consolidated")]
    if len(indices) == 1:
        whole = indices[0].removesuffix(".index.json")
        if whole in names:
            return _one_of_two(Location(folder, (whole,), row), indices[0], names, limits, choice)
        return _from_index(folder, indices[0], row, limits)
    if len(loose) == 1 and not indices and not re.search(r"-of-0*([2-9]|[1-9]\d+)\.", loose[0]):
        return Location(folder, tuple(loose), row)
    if not loose and not indices:
        return None
    raise CheckpointError(
        "the weights are not unique",
        path=folder,
        expected=f"{row.whole} or {row.index}",
        found=", ".join([*indices, *loose][:4]),
        hint="If these are shards, their index is missing; if not, name one file.",
    )


def _one_of_two(single: Location, index: str, names: list[str], limits: Limits, choice: str | None) -> Location:
    """Choose between a file and an index beside it: as the user says, else the file, as loaders do, with the shards as its rival."""
    whole = single.files[0]
    if choice == "index":
        return replace(_from_index(single.folder, index, single.format, limits), notes=(f"{index} was read, not {whole}",))
    if choice == "single":
        return replace(single, notes=(f"{whole} was read, not {index}",))
    shards = _from_index(single.folder, index, single.format, limits)
    own, there = shards.files == (whole,), any(name in names for name in shards.files)
    why = "has the same weights" if there else "names shards that are not there"
    return replace(single, notes=(f"{whole} was read; {index} beside it {why}",), rival=shards if there and not own else None)


def _from_index(folder: Path, name: str, row: WeightFormat, limits: Limits) -> Location:
    """Read an index; a shard must be a plain name, so that no index reaches out of its folder."""
    path = folder / name
    file = ReadFile(path)
    try:
        if file.size > limits.header_bytes:
            raise LimitError("the index is too long", path=path, expected=f"at most {limits.header_bytes}", found=file.size)
        document = load_json(file.read(0, file.size), path)
    finally:
        file.close()
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


def _nothing_found(folder: Path, names: list[str]) -> CheckpointError:
    hint = None
    if any(map(_ADAPTER.fullmatch, names)):
        hint = f"This folder holds an adapter. {_MERGE_LORA}"
    elif any(name.endswith(".gguf") for name in names):
        hint = "This folder holds GGUF files; use the safetensors checkpoint that they were made from."
    elif any(name.startswith("consolidated") for name in names):
        hint = "This folder is in the vendor's own format; convert it to a Hugging Face folder."
    elif "snapshots" in names:
        hint = "This is a cache folder of the hub; name the folder below snapshots/."
    return CheckpointError(
        "no weights in the folder",
        path=folder,
        expected=_either([name for row in FORMATS for name in row.names]),
        found=", ".join(names[:8]) or "an empty folder",
        hint=hint,
    )


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
