"""What a source says of a place, and what every source of other machines can do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from deltapack.errors import InputChangedError
from deltapack.sources.urls import Url

__all__ = ["Found", "Store", "changed"]


@dataclass(frozen=True)
class Found:
    """A file or a folder of another machine.

    Attributes:
        is_folder: Whether it is a folder.
        size: Bytes of a file.
        version: What changes with its content: ETag, generation, or the time of its last change.
        modified: That time, in seconds since 1970; 0 where nobody says.
    """

    is_folder: bool
    size: int = 0
    version: str = ""
    modified: float = 0.0


class Store(Protocol):
    """A kind of source."""

    def find(self, url: Url) -> Found | None:
        """Return what is there, now; none where nothing is.

        Raises:
            SourceError: Nobody says.
        """

    def names(self, url: Url) -> Mapping[str, Found | None]:
        """Return the names in a folder, with what is known of them; raises as `find`."""

    def fetch(self, url: Url, found: Found, start: int, stop: int, stopped: threading.Event) -> bytes:
        """Return bytes [start, stop) of a file, exactly.

        Args:
            url: The file.
            found: What it was when it was opened.
            start: First byte.
            stop: End of the range.
            stopped: Set when nobody waits for them any more.

        Raises:
            SourceError: They cannot be read, or the file is another by now.
        """


def changed(url: Url, expected: object, found: object) -> InputChangedError:
    """Return the error for a file that is another than when it was opened."""
    hint = "Somebody has written it again, or the servers behind the address do not agree: run again, or download it first."
    return InputChangedError("the file changed while it was read", path=str(url), expected=expected, found=found, hint=hint)
