"""Symbolic links among the files of a checkpoint: which of them lead out of it."""

from __future__ import annotations

import os
from pathlib import Path

from deltapack.sources.remote_path import RemotePath

__all__ = ["LEADS_OUT", "homes_of", "leads_out"]

LEADS_OUT = "links that lead out of the folder; --follow-links packs what they point to"
"""Why such a file does not travel: whoever gave the folder may point at any file of whoever packs it."""
_REPOSITORIES = ("models--", "datasets--", "spaces--")


def homes_of(folder: Path) -> tuple[Path, ...]:
    """Return the folders whose files are a checkpoint's own: its own, and the blobs of its repository in a cache of the Hugging Face Hub.

    There a snapshot, `models--ORG--NAME/snapshots/COMMIT`, is made of links to `models--ORG--NAME/blobs`. Blobs that are a link themselves
    are not known to be a cache's.
    """
    if isinstance(folder, RemotePath):
        return (folder,)
    real = Path(os.path.realpath(folder))
    for inner in (real, *real.parents):
        repository = inner.parent.parent
        blobs = repository / "blobs"
        if inner.parent.name == "snapshots" and repository.name.startswith(_REPOSITORIES) and blobs.is_dir() and not blobs.is_symlink():
            return real, blobs
    return (real,)


def leads_out(path: Path, homes: tuple[Path, ...]) -> bool:
    """Whether a file is, over whatever links, one that lies outside of these folders."""
    if isinstance(path, RemotePath):  # a store has no links
        return False
    real = Path(os.path.realpath(path))
    return not any(real.is_relative_to(home) for home in homes)
