"""What every engine offers: works done on a device, and undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from deltapack.device.exact_work import ExactWork
from deltapack.device.work import Saved, UndoMode, Work

__all__ = ["Engine"]


class Engine(Protocol):
    """A way to do works on a device."""

    name: str

    def switch(self, undo: Sequence[Saved], works: Sequence[Work | ExactWork], mode: UndoMode, done: list[Saved]) -> None:
        """Put back what earlier works replaced, then do works, region by region.

        Args:
            undo: What to put back, of any regions.
            works: What to do; at most one work a region.
            mode: How to save what is replaced.
            done: Gets what undoes the works, each before it is begun; after an error too.

        Raises:
            FormatError: A seeded mask keeps another number of elements than its table says, or coded symbols do not end where they should
                (rule R9); other works may have been done.
        """
