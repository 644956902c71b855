"""What the `__metadata__` of safetensors files says: free strings, and second names of tied tensors.

Two writers declare ties, `safetensors.torch.save_model` and huggingface_hub's `save_torch_state_dict`: of tensors that share memory
they keep one, and write `{dropped: kept}` among the metadata (the second of a sharded checkpoint into that of the index). Nothing
marks such a pair, and a free string may well be the name of a tensor. So a pair ties only where both are names of parameters that end
alike, as those of tied modules do (`lm_head.weight`, `model.embed_tokens.weight`), and the checkpoint has the one and not the other.
What our own writer declares otherwise is listed under `TIED`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from deltapack.checkpoint.safetensors import OWN_METADATA

__all__ = ["PLAIN", "TIED", "Strings", "declared_ties", "free_strings", "of_file"]

Strings = Mapping[str, Mapping[str, str]]
"""Free strings of weight files, by folder: its path in the checkpoint, `""` for the checkpoint's own."""

PLAIN: Mapping[str, str] = {"format": "pt"}
"""What nearly all files say, and what loaders want where nobody says anything."""

TIED = f"{OWN_METADATA}tied"
"""The key of a JSON list: the second names among the keys that do not meet the convention of other writers."""
_NOT_NAMES = ("modelspec.", "ss_", "sshs_", OWN_METADATA)
"""How keys begin that well-known standards of metadata have for free strings."""


def declared_ties(metadata: Mapping[str, str], held: Collection[str], elsewhere: Collection[str]) -> dict[str, str]:
    """Return the ties that metadata declare.

    Args:
        metadata: Of one file, or of the index of shards.
        held: Names of the tensors of which it speaks.
        elsewhere: Names of all tensors of the checkpoint.

    Returns:
        From dropped to kept names.
    """
    listed = _listed(metadata)
    return {
        name: kept
        for name, kept in metadata.items()
        if kept in held and name not in elsewhere and (name in listed or _meets_convention(name, kept))
    }


def free_strings(files: Sequence[Mapping[str, str]], aliases: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Join the metadata of the files of a checkpoint, without ties and what deltapack wrote.

    Shards mostly have the same; where they do not, the first one that has a key counts.

    Returns:
        The strings, and the keys for which files have different ones.
    """
    joined: dict[str, str] = {}
    differ: dict[str, None] = {}
    for metadata in files:
        for key, text in metadata.items():
            if key.startswith(OWN_METADATA) or aliases.get(key) == text:
                continue
            if joined.setdefault(key, text) != text:
                differ[key] = None
    return joined, list(differ)


def of_file(metadata: Mapping[str, str], ties: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata to write into a file.

    Args:
        metadata: What all files of the checkpoint say.
        ties: From second names to names of tensors in this file.
    """
    unlisted = sorted(name for name, kept in ties.items() if not _meets_convention(name, kept))
    own = {TIED: json.dumps(unlisted, ensure_ascii=False)} if unlisted else {}
    return dict(sorted({**metadata, **ties, **own}.items()))


def _listed(metadata: Mapping[str, str]) -> Collection[str]:
    with suppress(ValueError, RecursionError):
        names = json.loads(metadata.get(TIED, "[]"))
        if isinstance(names, list):
            return {name for name in names if isinstance(name, str)}
    return ()


def _meets_convention(name: str, kept: str) -> bool:
    """Whether both are names of parameters that end alike."""
    last = name.rpartition(".")[2]
    return "." in name and "." in kept and last == kept.rpartition(".")[2] and not name.startswith(_NOT_NAMES)
