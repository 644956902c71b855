"""One pack of a run: made against the step before, as long as that is at hand, else against what the packs before it restore."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltapack.checking import as_checkpoint
from deltapack.checkpoint import open_checkpoint
from deltapack.composing.chain import open_links, restored_from
from deltapack.errors import DeltapackError
from deltapack.format.reader import PackReader
from deltapack.packing.compressing import compress
from deltapack.packing.recipe import Recipe
from deltapack.reports import CompressReport, Progress
from deltapack.runs.comparing import looks_as_packed
from deltapack.runs.links import Link
from deltapack.sources.locks import scratch

__all__ = ["Maker", "base_or_nothing", "result_of"]

_EMPTY = b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "
"""A safetensors file without tensors."""


@contextlib.contextmanager
def base_or_nothing(base: str | Path | None) -> Iterator[Path]:
    """Return the base of a run; where there is none, a checkpoint without tensors."""
    if base is not None:
        yield as_checkpoint("the base", base)
        return
    with scratch() as work:
        empty = work / "nothing.safetensors"
        empty.write_bytes(_EMPTY)
        yield empty


def result_of(pack: Path) -> str:
    """Return the fingerprint of what a pack restores."""
    with PackReader(pack) as reader:
        return reader.index.result_fingerprint


@dataclass(frozen=True)
class Maker:
    """Packs a checkpoint.

    Attributes:
        base: What the run started from, or `base_or_nothing`.
        checkpoint: What to pack.
        made: The pack to write; it is replaced.
        unrelated: Whether the base has nothing to do with the checkpoint.
        workers: Threads; every core unless given.
        progress: Called with bytes of the checkpoint done so far and in all.
    """

    base: Path
    checkpoint: str | Path
    made: Path
    unrelated: bool
    workers: int | None
    progress: Progress | None

    def follow(self, chain: Sequence[Link], earlier: Path | None) -> CompressReport:
        """Make a pack that follows a chain; an anchor where that is empty.

        Args:
            chain: The packs that it follows.
            earlier: The checkpoint that the last of them was made of, if it is still there: reading it takes one pass, whatever the
                length of the chain. What says otherwise than the packs is not used.
        """
        if chain and earlier is not None and looks_as_packed(earlier, chain[-1]):
            with contextlib.suppress(DeltapackError):  # it may be deleted meanwhile; other faults come up again
                report = self._compress(earlier, ())
                if self._fits(chain):
                    return report
        return self._compress(self.base, [link.path for link in chain])

    def _compress(self, base: Path, packs: Sequence[Path]) -> CompressReport:
        return compress(
            base,
            self.checkpoint,
            self.made,
            recipe=Recipe(exact=True),
            base_packs=packs,
            allow_unrelated=self.unrelated,
            workers=self.workers,
            force=True,
            progress=self.progress,
        )

    def _fits(self, chain: Sequence[Link]) -> bool:
        """Whether the pack follows a chain, by the fingerprint of its base and by all that can be told without reading tensors.

        Raises:
            DeltapackError: It does not.
        """
        paths = [*(link.path for link in chain), self.made]
        with open_checkpoint(self.base) as base, open_links(paths) as packs:
            restored = restored_from(base, packs)
            restored.side_files(), restored.heads()
            return packs[-1].index.base_fingerprint == chain[-1].result
