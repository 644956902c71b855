"""deltapack in fsspec: `deltapack://` paths read what packs restore, for every library that opens files through fsspec."""

from __future__ import annotations

from deltapack.integrations.fsspec.filesystem import DeltapackFileSystem

__all__ = ["DeltapackFileSystem"]
