"""The content id: what a pack, or a checkpoint, gives to whoever loads it. Implements spec/03-index.md section 3.14.

Two packs with one content id restore the same tensors and files, however they are coded, whoever wrote them and whatever their base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from deltapack.format.forms import is_descriptive
from deltapack.format.index import Index

__all__ = ["content_id", "content_of"]

_HEAD = "dpk-content-1\n"


def content_id(fingerprint: str, aliases: Mapping[str, str], folders: Iterable[str], files: Mapping[str, str] | None) -> str:
    """Return the content id, 64 hexadecimal digits.

    Args:
        fingerprint: Of the tensors (section 3.5).
        aliases: From the second name of a tied tensor to the name that is kept.
        folders: Sub-folders that hold tensors.
        files: SHA-256 of each side file by its name; `None` where nothing is said of files. Those for people do not count.
    """
    sha = hashlib.sha256(f"{_HEAD}tensors\0{fingerprint}\n".encode())
    for name in _sorted(aliases):
        sha.update(f"alias\0{name}\0{aliases[name]}\n".encode())
    for folder in _sorted(folders):
        sha.update(f"folder\0{folder}\n".encode())
    if files is not None:
        sha.update(b"files\n")
        for name in _sorted(name for name in files if not is_descriptive(name)):
            sha.update(f"file\0{name}\0{files[name]}\n".encode())
    return sha.hexdigest()


def content_of(index: Index) -> str:
    """Return the content id of a pack, from its index alone: of what it restores when it is applied alone, with weight 1."""
    aliases = {entry.name: entry.of for entry in index.entries if entry.kind == "alias"}
    files = None if index.files is None else {file.name: file.sha256 for file in index.files}
    return content_id(index.result_fingerprint, aliases, index.folders, files)


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=str.encode)
