"""The heads of a result's weight files: from its pack or of its base, each checked by its SHA-256, and all against the tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from deltapack.checkpoint import Head, Shard, shards_of_heads
from deltapack.errors import BaseMismatchError
from deltapack.format.index import FileEntry
from deltapack.format.reader import PackReader

__all__ = ["WeightFiles", "check_heads_alone", "restored_files"]

WeightFiles = tuple[list[Shard], list[Head]]
"""Weight files to write with their heads, and the indices of those that are shards."""
HeadOf = Callable[[str], bytes | None]
"""Gives the head of a file of the base by its name; none where it has none."""


def restored_files(pack: PackReader, head_of: HeadOf, base: Path) -> WeightFiles:
    """Return the weight files of the result as the fine-tune has them.

    Args:
        pack: The pack, which has `containers`.
        head_of: Gives heads of the base.
        base: Where the base is, for errors.

    Raises:
        BaseMismatchError: The base lacks a head that the pack leaves to it or refers to (rule R11), or has another (R12).
        FormatError: A head is damaged in the pack, or they do not fit the tensors.
    """
    return _fitting(pack, [Head(container.name, _content(pack, container, head_of, base)) for container in pack.index.containers])


def check_heads_alone(pack: PackReader) -> None:
    """Check what a pack says of weight files as far as that can be without the base.

    Raises:
        FormatError: A head is damaged; or, where none needs the base, they do not fit the tensors.
    """
    heads = []
    for container in pack.index.containers:
        if container.blob is not None and not container.base:
            heads.append(Head(container.name, pack.side_file(container)))
        elif container.blob is not None:
            pack.check_side_file(container)
    if heads and len(heads) == len(pack.index.containers):
        _fitting(pack, heads)


def _fitting(pack: PackReader, heads: Sequence[Head]) -> WeightFiles:
    index = pack.index
    tensors = [entry for entry in index.entries if entry.in_result]
    aliases = {entry.name: entry.of for entry in index.entries if entry.kind == "alias"}
    return shards_of_heads(heads, tensors, path=pack.path, aliases=aliases, folders=index.folders)


def _content(pack: PackReader, container: FileEntry, head_of: HeadOf, base: Path) -> bytes:
    """Return a head that a pack holds, or that it leaves to the base."""
    if container.blob is not None and not container.base:
        return pack.side_file(container)
    wanted, at_base = container.base or container.sha256, head_of(container.name)
    if at_base is None:
        raise _other_head(base, container, "no such file", "R11")
    if hashlib.sha256(at_base).hexdigest() != wanted or not (container.base or len(at_base) == container.size):
        raise _other_head(base, container, f"another one, of {len(at_base):,} bytes", "R12")
    return at_base if container.blob is None else pack.side_file(container, at_base)


def _other_head(base: Path, container: FileEntry, found: str, rule: str) -> BaseMismatchError:
    return BaseMismatchError(
        f"the result's weight file {container.name!r} needs the header of the base's, which was split or saved anew since packing",
        path=base / container.name if base.is_dir() else base,
        expected=f"a header of sha256 {container.base or container.sha256}",
        found=found,
        rule=rule,
        hint="Fetch the base as it was at packing, or restore the same tensors into other files: --max-shard-size SIZE.",
    )
