"""A file beside the weights, and one that does not travel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deltapack.checkpoint.files import open_to_read
from deltapack.sources.identity import Stamp, stamp_of
from deltapack.sources.inputs import changed_here
from deltapack.sources.local import LocalFile

__all__ = ["LeftOut", "SideFile"]


class LeftOut(NamedTuple):
    """A file that does not travel, and why.

    Attributes:
        name: Relative path with `/`; a folder ends with `/`.
        reason: A clause for the user.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class SideFile:
    """A file beside the weights.

    Attributes:
        name: Relative path with `/`.
        size: Bytes.
        path: Where it is.
        stamp: What the system said of it when it was listed.
    """

    name: str
    size: int
    path: Path
    stamp: Stamp

    @classmethod
    def at(cls, name: str, path: Path) -> SideFile:
        """Return a file that is there.

        Raises:
            OSError: As the system says.
        """
        status = path.stat()
        return cls(name, status.st_size, path, stamp_of(status))

    def read(self) -> bytes:
        """Return the content.

        Raises:
            CheckpointError: It cannot be read.
            InputChangedError: It is another than it was when it was listed.
        """
        file = open_to_read(self.path)
        try:
            if isinstance(file, LocalFile) and file.identity.stamp != self.stamp:
                raise changed_here(self.path, ("the file that was listed", "another, or another content"))
            if file.size != self.size:
                raise changed_here(self.path, (f"{self.size:,} bytes", f"{file.size:,}"))
            return file.read(0, self.size)
        finally:
            file.close()
