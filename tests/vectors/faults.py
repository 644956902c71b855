"""How a fault is described, for make_vectors.py only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vectors.assemble import Json

Case = tuple[str, str, str, str | None, bytes]
"""Rule, what is wrong, error class, name of the valid vector whose base fits, file."""
FORMAT, CHECKSUM, LIMIT, UNSUPPORTED, MISMATCH = (
    "FormatError",
    "ChecksumError",
    "LimitError",
    "UnsupportedError",
    "BaseMismatchError",
)


def put(*path: Any) -> Callable[[Json], None]:
    """Set the value at a path (its last item is the value)."""

    def edit(index: Any) -> None:
        *keys, last, value = path
        for key in keys:
            index = index[key]
        index[last] = value

    return edit


def drop(*path: Any) -> Callable[[Json], None]:
    """Remove the key at a path."""

    def edit(index: Any) -> None:
        for key in path[:-1]:
            index = index[key]
        del index[path[-1]]

    return edit
