"""Open a file, wherever it is."""

from __future__ import annotations

from pathlib import Path

from deltapack.sources.local import LocalFile
from deltapack.sources.reading import Faults, Readable

__all__ = ["open_file"]


def open_file(path: Path, faults: Faults) -> Readable:
    """Open a file for reads at positions.

    Args:
        path: The file.
        faults: The errors to raise.

    Raises:
        DeltapackError: As `faults` says.
    """
    return LocalFile(path, faults)
