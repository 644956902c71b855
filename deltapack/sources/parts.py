"""The names of packs that come in numbered parts, with an index beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from deltapack.errors import NotAPackError

__all__ = ["PARTS_INDEX", "parts_index_of", "whole_packs"]

PARTS_INDEX = ".dpk.index.json"
"""What the name of the index ends in."""
_PART = re.compile(r"(.+)-(\d{5})-of-\d{5}\.dpk")


def parts_index_of(path: Path) -> Path | None:
    """Return the index of the parts of a pack that a path means; none where it is one file, or nothing.

    Args:
        path: The index itself, the first part, or the name of the whole.

    Raises:
        NotAPackError: It is a part, and not the first.
    """
    if path.name.endswith(PARTS_INDEX):
        return path
    part = _PART.fullmatch(path.name)
    index = path.with_name(f"{part[1] if part else path.name.removesuffix('.dpk')}{PARTS_INDEX}")
    if not path.name.endswith(".dpk") or (not part and path.exists()) or not index.is_file():
        return None
    if part and int(part[2]) != 1:
        raise NotAPackError("this is a later part of a pack", path=path, hint=f"Name the whole: {index.name.removesuffix('.index.json')}.")
    return index


def whole_packs(names: Iterable[str]) -> list[str]:
    """Return what of the names of a folder's files are packs: of those in parts the index.

    >>> whole_packs(["a.dpk", "b-00001-of-00002.dpk", "b-00002-of-00002.dpk", "b.dpk.index.json", "c.txt"])
    ['a.dpk', 'b.dpk.index.json']
    """
    listed = set(names)

    def is_part(name: str) -> bool:
        found = _PART.fullmatch(name)
        return found is not None and f"{found[1]}{PARTS_INDEX}" in listed

    return sorted(name for name in listed if name.endswith(PARTS_INDEX) or (name.endswith(".dpk") and not is_part(name)))
