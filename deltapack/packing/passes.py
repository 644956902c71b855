"""Several passes over a fine-tune as one progress: a budget takes a survey and one or more packs."""

from __future__ import annotations

from dataclasses import dataclass

from deltapack.reports import Progress

__all__ = ["Passes"]


@dataclass
class Passes:
    """Adds passes up: what is done never falls, and what there is to do grows where a pass turns out not to be the last.

    Attributes:
        progress: Called with bytes done and in all, of all passes.
        over: Bytes of the passes before the next one.
    """

    progress: Progress
    over: int = 0

    def begin(self, size: int, ahead: int = 0) -> Progress:
        """Return what the next pass calls with its bytes done.

        Args:
            size: Bytes of this pass.
            ahead: Bytes of those that are sure to follow.
        """
        before = self.over
        self.over += size
        return lambda done, _: self.progress(before + done, before + size + ahead)
