"""Files of this machine, opened as checkpoints open them."""

from __future__ import annotations

from pathlib import Path

from deltapack.checkpoint.files import open_to_read
from deltapack.sources.local import LocalFile

__all__ = ["open_local"]


def open_local(path: Path) -> LocalFile:
    """Open a file of this machine."""
    file = open_to_read(path)
    assert isinstance(file, LocalFile)
    return file
