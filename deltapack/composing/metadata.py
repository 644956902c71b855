"""The metadata of the safetensors files of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from deltapack.checkpoint import Checkpoint
from deltapack.checkpoint.metadata import PLAIN, Strings
from deltapack.format.metadata import metadata_of
from deltapack.format.reader import PackReader

__all__ = ["choose_metadata", "result_metadata"]


def choose_metadata(readers: Sequence[PackReader], wanted: int | Literal["base"] | None) -> Strings | None:
    """Return what packs say of the metadata of a result; none where the base's count.

    Of several packs: those of the pack whose side files the user wants, else those that all packs have, else the base's.
    """
    if wanted == "base":
        return None
    stated = [metadata_of(reader.index) for reader in readers]
    if wanted is not None:
        return stated[wanted]
    return stated[0] if all(other == stated[0] for other in stated) else None


def result_metadata(base: Checkpoint, chosen: Strings | None, folders: Iterable[str], besides: Mapping[str, str]) -> Strings:
    """Compose the metadata of the files of a result, by folder; ties are added file by file as they are written.

    Args:
        base: The base.
        chosen: What `choose_metadata` gave.
        folders: Sub-folders of the result with weights.
        besides: Strings for all files.
    """
    stated = chosen if chosen is not None else base.metadata
    return {folder: {**(stated.get(folder) or PLAIN), **besides} for folder in ("", *folders)}
