"""What is told of a step of a run, and what is taken where nobody says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["EVERY_ANCHOR", "POLL", "SETTLE", "ChangedStep", "PackedStep", "SkippedStep"]

EVERY_ANCHOR = 20
"""Packs of a chain, of which the first is made from the base."""
SETTLE, POLL = 10.0, 2.0
"""Seconds for which nothing of a checkpoint may change before it counts as complete, and between two looks."""


@dataclass(frozen=True)
class PackedStep:
    """A step that was packed.

    Attributes:
        step: The step.
        pack: The file.
        pack_bytes: Its size.
        checkpoint_bytes: Size of the checkpoint's tensors.
        follows: The step whose pack it follows; None for an anchor.
        removed: Steps whose packs were removed or replaced: of a run that was left, or as newer ones are kept.
        notes: What `compress` noticed.
        warnings: That the pack does not follow the step before, as packs of that are missing.
    """

    step: int
    pack: Path
    pack_bytes: int
    checkpoint_bytes: int
    follows: int | None
    removed: tuple[int, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangedStep:
    """A checkpoint that is another than its step's pack gives: it was rewritten after it was packed. The pack stays what it is.

    Attributes:
        step: Its step.
        path: Its folder or file.
        pack: The pack.
    """

    step: int
    path: Path
    pack: Path


@dataclass(frozen=True)
class SkippedStep:
    """A checkpoint that was not packed, as long as it stays what it is.

    Attributes:
        step: Its step.
        path: Its folder or file.
        reason: Why: it is incomplete, or no checkpoint that is read.
    """

    step: int
    path: Path
    reason: str
