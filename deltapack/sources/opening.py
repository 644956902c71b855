"""Open a file, wherever it is."""

from __future__ import annotations

from pathlib import Path

from deltapack.sources.local import LocalFile
from deltapack.sources.reading import Faults, Readable
from deltapack.sources.remote_path import RemotePath

__all__ = ["open_file"]


def open_file(path: Path, faults: Faults) -> Readable:
    """Open a file for reads at positions.

    Args:
        path: The file; a `RemotePath` is read where it is.
        faults: The errors to raise; those of network and server are `SourceError`.

    Raises:
        DeltapackError: As `faults` says.
        SourceError: A file of another machine cannot be reached.
    """
    if not isinstance(path, RemotePath):
        return LocalFile(path, faults)
    from deltapack.sources.remote import RemoteFile  # only who reads elsewhere pays for importing it

    return RemoteFile(path, path.url, faults)
