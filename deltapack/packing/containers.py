"""Which heads of the fine-tune's weight files travel in a pack, so that these files come back byte for byte."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from deltapack.checkpoint import Checkpoint, Head, shards_of_heads
from deltapack.errors import FormatError, LimitError
from deltapack.format.containers import check_head_name
from deltapack.format.index import Entry, FileEntry
from deltapack.format.writer import PackWriter
from deltapack.limits import DEFAULT_LIMITS

__all__ = ["write_heads"]


def write_heads(
    writer: PackWriter, base: Checkpoint, finetuned: Checkpoint, entries: Sequence[Entry], kept: Collection[str]
) -> tuple[tuple[FileEntry, ...], list[str]]:
    """Write the heads of the fine-tune's weight files, but for those that the base has, too.

    Args:
        writer: The pack.
        base: The base.
        finetuned: The fine-tune.
        entries: The pack's entries.
        kept: Tensors of the base that the result has beside those of the fine-tune.

    Returns:
        What the pack says of them; none, and a sentence why, where the files cannot come back as they are.
    """
    heads, why = _restorable(finetuned, entries, kept)
    if why:
        return (), [f"the tensors come back bit for bit, the weight files do not byte for byte: {why}"]
    return tuple(writer.head(head.name, head.data, base.head(head.name)) for head in heads), []


def _restorable(finetuned: Checkpoint, entries: Sequence[Entry], kept: Collection[str]) -> tuple[tuple[Head, ...], str]:
    """Return the heads of a fine-tune, or why they are of no use."""
    if kept:
        return (), f"tensors of the base are kept beside them, such as {min(kept)!r}"
    try:
        heads = finetuned.heads()
        if not heads:
            return (), "not all of them are safetensors files"
        for head in heads:
            check_head_name(head.name, DEFAULT_LIMITS)
        tensors = [entry for entry in entries if entry.in_result]
        shards_of_heads(heads, tensors, path=finetuned.path, aliases=finetuned.aliases, folders=finetuned.folders)
    except (FormatError, LimitError) as error:
        return (), str(error)
    return heads, ""
