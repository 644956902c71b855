"""The base as packs see it: with the tensors that they make of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltapack.checkpoint import Checkpoint
from deltapack.errors import BaseMismatchError, MergeConflictError
from deltapack.format.arrangement import Arrangement
from deltapack.format.index import Index
from deltapack.format.reader import PackReader

__all__ = ["agreed_arrangements", "arranged_base", "arrangements_of"]


def arrangements_of(index: Index) -> dict[str, Arrangement]:
    """Return what a pack makes of tensors of its base, by name."""
    bases = (entry.base for entry in index.entries if entry.base is not None)
    return {base.name: base.arranged for base in bases if base.arranged is not None}


def agreed_arrangements(packs: Sequence[PackReader]) -> dict[str, Arrangement]:
    """Return what packs make of tensors of their base; nothing where they have different ones, which `check_base` says.

    Raises:
        MergeConflictError: They make different tensors of the same base.
    """
    first = packs[0]
    if any(pack.index.base_fingerprint != first.index.base_fingerprint for pack in packs):
        return {}
    wanted = arrangements_of(first.index)
    for pack in packs[1:]:
        _check_same(first.path, wanted, pack.path, arrangements_of(pack.index))
    return wanted


def arranged_base(base: Checkpoint, packs: Sequence[PackReader]) -> Checkpoint:
    """Return a base with the tensors that packs make of its own; the base itself where they make none.

    Raises:
        BaseMismatchError: The base has not the tensors that one is made of, with such boxes and of its type.
        MergeConflictError: The packs make different tensors of the same base.
    """
    first, wanted = packs[0], agreed_arrangements(packs)
    if not wanted:
        return base
    for entry in first.index.entries:
        if entry.base is not None and entry.base.arranged is not None:
            for piece, cell in entry.base.arranged.cells:
                found = base.tensors.get(base.aliases.get(piece.name, piece.name))
                extent = piece.extent_in(cell)
                ends = [start + size for start, size in zip(piece.start, extent, strict=True)]
                fits = found is not None and found.dtype == entry.base.dtype and len(found.shape) == len(ends)
                if not fits or any(end > size for end, size in zip(ends, found.shape if found else (), strict=True)):
                    raise BaseMismatchError(
                        "this is not the base that the pack was made from",
                        path=base.path,
                        tensor=piece.name,
                        expected=f"{entry.base.dtype}, at least {ends}, as a part of {entry.name!r}",
                        found="no such tensor" if found is None else f"{found.dtype} {list(found.shape)}",
                        rule="R11",
                        hint="`deltapack inspect` tells which base a pack needs.",
                    )
    return base.with_arranged(wanted)


def _check_same(path: Path, wanted: dict[str, Arrangement], other: Path, found: dict[str, Arrangement]) -> None:
    """Refuse packs of which one has tensors fused, split or transposed that another has not: their results hold different tensors.

    Raises:
        MergeConflictError: They differ.
    """
    if wanted == found:
        return
    name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    raise MergeConflictError(
        "one pack makes this tensor of others of the base (fuses, splits or transposes them), another pack does not, or otherwise",
        tensor=name,
        path=other,
        expected=f"the layout of {path}",
        hint="Restore one fine-tune, save it in the layout of the other, and compress that.",
    )
