"""Where bytes lie in a pack. Implements spec/02-container.md section 2.3, and the steps of exact entries (spec/03-index.md 3.12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["EXACT", "MOST_STEPS", "MOST_TABLE", "BlobRef", "ExactStep"]

EXACT = "exact"
"""The required feature of a pack with tensors that are coded exactly, and their kind."""
MOST_STEPS, MOST_TABLE = 64, (1 << 15) + 6
"""Steps of an entry, and bytes of a table that chunks share, at most."""


@dataclass(frozen=True)
class BlobRef:
    """A byte range of the file and its hash (16 hexadecimal digits)."""

    offset: int
    length: int
    hash: str

    @property
    def end(self) -> int:
        """Offset of the first byte after the blob."""
        return self.offset + self.length

    def to_json(self) -> list[Any]:
        """Return the reference as the index spells it."""
        return [self.offset, self.length, self.hash]


@dataclass(frozen=True)
class ExactStep:
    """From one state of a tensor to the next.

    Attributes:
        blob: Its chunks (spec/codecs/exact.md).
        tables: The number of the pack's table that its chunks call 0.
    """

    blob: BlobRef
    tables: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the step as the index spells it."""
        return {"blob": self.blob.to_json()} | ({"tables": self.tables} if self.tables else {})
