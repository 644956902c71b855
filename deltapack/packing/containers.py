"""Which heads of the fine-tune's weight files travel in a pack, so that these files come back byte for byte."""

from __future__ import annotations

from collections.abc import Collection

from deltapack.adapters import AdaptedCheckpoint
from deltapack.checkpoint import Checkpoint, Head, shards_of_heads
from deltapack.composing.restored import RestoredCheckpoint
from deltapack.errors import FormatError, LimitError
from deltapack.format.containers import check_head_name
from deltapack.format.index import FileEntry
from deltapack.format.paths import check_apart
from deltapack.format.writer import PackWriter
from deltapack.limits import DEFAULT_LIMITS

__all__ = ["heads_to_write", "write_heads"]


def write_heads(
    writer: PackWriter, base: Checkpoint, finetuned: Checkpoint, kept: Collection[str]
) -> tuple[tuple[FileEntry, ...], list[str]]:
    """Write the heads of the fine-tune's weight files, but for those that the base has, too.

    Args:
        writer: The pack.
        base: The base.
        finetuned: The fine-tune.
        kept: Tensors of the base that the result has beside those of the fine-tune.

    Returns:
        What the pack says of them; none, and a sentence why, where the files cannot come back as they are.
    """
    heads, notes = heads_to_write(finetuned, kept)
    return tuple(writer.head(head.name, head.data, base.head(head.name)) for head in heads), notes


def heads_to_write(finetuned: Checkpoint, kept: Collection[str]) -> tuple[tuple[Head, ...], list[str]]:
    """Return the heads with which the fine-tune's weight files come back; none, and a sentence why, where they cannot."""
    heads, why = _restorable(finetuned, kept)
    return heads, [f"the tensors come back bit for bit, the weight files do not byte for byte: {why}"] if why else []


def _restorable(finetuned: Checkpoint, kept: Collection[str]) -> tuple[tuple[Head, ...], str]:
    """Return the heads of a fine-tune, or why they are of no use."""
    if kept:
        return (), f"tensors of the base are kept beside them, such as {min(kept)!r}"
    try:
        heads = finetuned.heads()
        if not heads:
            return (), _why_none(finetuned)
        for head in heads:
            check_head_name(head.name, DEFAULT_LIMITS)
        check_apart([head.name for head in heads], "weight files")
        shards_of_heads(heads, finetuned.tensors.values(), path=finetuned.path, aliases=finetuned.aliases, folders=finetuned.folders)
    except (FormatError, LimitError) as error:
        return (), str(error)
    return heads, ""


def _why_none(finetuned: Checkpoint) -> str:
    """Return why nobody knows the heads of its weight files."""
    if isinstance(finetuned, RestoredCheckpoint):
        return f"the last pack of the chain, {finetuned.packs[-1].path}, has no headers of them"
    if isinstance(finetuned, AdaptedCheckpoint):
        return "the fine-tune is an adapter, and has none"
    return "not all of them are safetensors files"
