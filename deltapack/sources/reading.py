"""What every source of bytes offers, and the errors that its user wants to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltapack.errors import DeltapackError

__all__ = ["Faults", "Readable", "read_exactly"]


class Readable(Protocol):
    """A file opened for reads at positions, by any number of threads."""

    path: Path
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (format B) with the bytes from `offset`."""

    def close(self) -> None:
        """Let the file go; closing twice is fine."""


@dataclass(frozen=True)
class Faults:
    """The errors of who opens a file: a checkpoint's are others than a pack's.

    Attributes:
        missing: There is no such file.
        unfit: It is there, and nothing that can be read at positions; with a clause that says why.
        unread: It was opened, and cannot be read; with a clause that says why.
        ended: It ends before byte `expected`; `found` bytes were read.
        sealed: Whether checksums are compared of all that is read, as of a pack.
    """

    missing: Callable[[Path], DeltapackError]
    unfit: Callable[[Path, str], DeltapackError]
    unread: Callable[[Path, str], DeltapackError]
    ended: Callable[[Path, int, int], DeltapackError]
    sealed: bool = False


def read_exactly(file: Readable, faults: Faults, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes of a file from `offset`, by its `read_into`.

    Raises:
        DeltapackError: As `faults` says: the file ends before, which is told before memory is taken, or cannot be read.
    """
    if offset + length > file.size:
        raise faults.ended(file.path, offset + length, file.size)
    buffer = bytearray(length)
    file.read_into(offset, memoryview(buffer))
    return bytes(buffer)
