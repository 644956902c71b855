"""A pack and its base, opened: what is exported is the difference between the base and what the pack restores from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deltapack.checking import as_text
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing.arranged import arranged_base
from deltapack.composing.compose import compose
from deltapack.composing.restored import RestoredCheckpoint
from deltapack.composing.tensor_job import TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.errors import UnsupportedError
from deltapack.format.reader import PackReader
from deltapack.sources.hub import NamedBase, find_base, split_revision

__all__ = ["Opened", "base_of", "open_both"]


@dataclass(frozen=True)
class Opened:
    """A pack and its base.

    Attributes:
        base: The base.
        seen: The base with its tensors in the layout of the fine-tune, which jobs start from.
        restored: What the pack makes of it, read without being written.
        jobs: What each tensor of that is made of.
        named: How the base was named.
        notes: What was noticed.
    """

    base: Checkpoint
    seen: Checkpoint
    restored: Checkpoint
    jobs: Sequence[TensorJob]
    named: NamedBase
    notes: Sequence[str]


def base_of(base: str | Path) -> NamedBase:
    """Return the base that a path or a name on the Hub stands for; raises as `deltapack.sources.hub.find_base`."""
    name, revision = split_revision(str(base) if isinstance(base, Path) else as_text("base", base))
    return find_base(name, revision, side_files=True)


def open_both(stack: ExitStack, pack: Path, base: str | Path) -> Opened:
    """Open a pack and its base, and compare their headers; both are closed with the stack.

    Raises:
        BackendError: The base is on the Hub, and huggingface_hub is not installed.
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is not there, or damaged.
        FormatError: The pack is damaged.
        RecipeError: The base has no name.
        UnsupportedError: The result has weights in sub-folders.
    """
    named = base_of(base)
    checkpoint = stack.enter_context(open_checkpoint(named.folder))
    reader = stack.enter_context(PackReader(pack))
    restored = RestoredCheckpoint(checkpoint, reader)
    if restored.folders:
        hint, parts = "Restore a folder with `deltapack apply`.", ", ".join(restored.folders)
        raise UnsupportedError("the pack restores several folders, not one model", path=pack, found=parts, hint=hint)
    seen = arranged_base(checkpoint, [reader])
    composition = compose(seen, [WeightedPack(reader)])
    return Opened(checkpoint, seen, restored, composition.jobs, named, restored.notes)
