"""Names of tensors in sub-folders of a checkpoint, and of weight files. Implements spec/03-index.md sections 3.9 and 3.13."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["folder_of", "is_index_of_shards", "is_metadata"]

_METADATA = "__metadata__"


def is_index_of_shards(name: str) -> bool:
    """Whether a head of this name is that of an index of shards, which is the whole file, and not of a safetensors file."""
    return name.endswith(".index.json")


def is_metadata(name: str, folders: Collection[str]) -> bool:
    """Whether a tensor of this name would be, in the header of its safetensors file, what has the key of the metadata."""
    if not name.endswith(_METADATA):
        return False
    folder = folder_of(name, folders)
    return name[len(folder) + 1 if folder else 0 :] == _METADATA


def folder_of(name: str, folders: Collection[str]) -> str:
    """Return the sub-folder that a tensor of this name is in, the longest that fits; the empty string stands for the top.

    >>> folder_of("a/b/w", {"a", "a/b"}), folder_of("a/c/w", {"a", "a/b"}), folder_of("a", {"a"})
    ('a/b', 'a', '')
    """
    end = name.rfind("/") if folders else -1
    while end > 0:
        if name[:end] in folders:
            return name[:end]
        end = name.rfind("/", 0, end)
    return ""
