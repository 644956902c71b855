"""Which packs of a chain come before the base that is at hand, and which go on from it."""

from __future__ import annotations

import math

from deltapack.checkpoint import Checkpoint
from deltapack.format.arrangement import BaseRef
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.format.reader import PackReader

__all__ = ["stands_between"]

_MOST_BYTES = 1 << 28
"""Of a tensor that is looked at."""
_TENSORS = 3


def stands_between(base: Checkpoint, before: PackReader, after: PackReader) -> bool:
    """Whether a base is what one pack restores and the next was made from, by the smallest tensors that the first of them changes.

    Only a few tensors are compared: that the base is the right one in all others is checked as they are read.

    Args:
        base: The base.
        before: A pack.
        after: A pack that was made from what `before` restores.

    Raises:
        CheckpointError: The base cannot be read.
    """
    old, new = _said(before), _said(after)
    changed = [ref for name, ref in new.items() if name not in old or old[name].digest != ref.digest]
    smallest = sorted((ref for ref in changed if ref.arranged is None), key=lambda ref: (_nbytes(ref), ref.name))[:_TENSORS]
    looked_at = [ref for ref in smallest if _nbytes(ref) <= _MOST_BYTES]
    return bool(looked_at) and all(_digest(base, ref.name) == ref.digest for ref in looked_at)


def _said(pack: PackReader) -> dict[str, BaseRef]:
    """Return what a pack says of the tensors that it was made from, by name."""
    return {entry.base.name: entry.base for entry in pack.index.entries if entry.base is not None}


def _nbytes(ref: BaseRef) -> int:
    return math.prod(ref.shape) * ref.dtype.itemsize


def _digest(base: Checkpoint, name: str) -> str | None:
    """Return the root digest of a tensor; none where the base has no such tensor, or one that is too large."""
    tensor = base.tensors.get(base.aliases.get(name, name))
    if tensor is None or tensor.nbytes > _MOST_BYTES:
        return None
    spans = ((start, min(start + CHUNK, tensor.numel)) for start in range(0, tensor.numel, CHUNK))
    return root_digest(tensor.dtype.name, tensor.shape, (chunk_digest(base.read(tensor.name, *span)) for span in spans))
