"""The heads of a result's weight files: from its pack or of its base, each checked by its SHA-256, and all against the tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from deltapack.checkpoint import Checkpoint, Head, Shard, shards_of_heads
from deltapack.errors import BaseMismatchError
from deltapack.format.index import FileEntry
from deltapack.format.reader import PackReader

__all__ = ["WeightFiles", "check_heads_alone", "fitting", "head_after", "head_of", "restored_files"]

WeightFiles = tuple[list[Shard], list[Head]]
"""Weight files to write with their heads, and the indices of those that are shards."""


def restored_files(pack: PackReader, base: Checkpoint) -> WeightFiles:
    """Return the weight files of the result as the fine-tune has them.

    Args:
        pack: The pack, which has `containers`.
        base: Its base.

    Raises:
        BaseMismatchError: The base lacks a head that the pack leaves to it or refers to (rule R11), or has another (R12).
        FormatError: A head is damaged in the pack, or they do not fit the tensors.
    """
    heads = []
    for container in pack.index.containers:
        whole = container.blob is not None and not container.base
        heads.append(Head(container.name, head_of(pack, container, None if whole else base.head(container.name), base.path)))
    return fitting(pack, heads)


def head_after(origin: Checkpoint, packs: Sequence[PackReader], name: str) -> bytes | None:
    """Return the head of a weight file that a chain restores; none where its last pack says nothing of one.

    Args:
        origin: The base of the first pack.
        packs: The chain, in order.
        name: The file.

    Raises:
        BaseMismatchError: What it refers to is not there or another one.
        FormatError: It is damaged.
    """
    held, data = list[tuple[PackReader, FileEntry]](), None
    for pack in reversed(packs):
        container = next((container for container in pack.index.containers if container.name == name), None)
        if container is None:
            break
        held.append((pack, container))
        if container.blob is not None and not container.base:  # needs nothing that was before
            break
    else:
        data = origin.head(name)
    for pack, container in reversed(held):
        data = head_of(pack, container, data, origin.path)
    return data


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
        fitting(pack, heads)


def fitting(pack: PackReader, heads: Sequence[Head]) -> WeightFiles:
    """Return the weight files that heads are those of.

    Raises:
        FormatError: They do not fit the tensors that the pack restores.
    """
    index = pack.index
    tensors = [entry for entry in index.entries if entry.in_result]
    aliases = {entry.name: entry.of for entry in index.entries if entry.kind == "alias"}
    return shards_of_heads(heads, tensors, path=pack.path, aliases=aliases, folders=index.folders)


def head_of(pack: PackReader, container: FileEntry, at_base: bytes | None, base: Path) -> bytes:
    """Return a head that a pack holds, or that it leaves to its base; `at_base` is the one there, if it is needed."""
    if container.blob is not None and not container.base:
        return pack.side_file(container)
    wanted = container.base or container.sha256
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
        hint="Fetch the base as it was at packing, in the same files. `deltapack apply --max-shard-size SIZE` needs its tensors alone: "
        "it writes those of the fine-tune, bit for bit, into files of other sizes.",
    )
