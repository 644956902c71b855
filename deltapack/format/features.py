"""Which features a reader of a pack has to know (spec/05-versioning.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from deltapack.format.arrangement import FEATURE
from deltapack.format.blobs import EXACT
from deltapack.format.codecs import FILE_BASE, FOLDERS, RAW_TYPES
from deltapack.format.containers import CONTAINERS
from deltapack.format.index import Entry, FileEntry

__all__ = ["features_of"]

_NO_FOLDERS: Mapping[str, str] = MappingProxyType({})


def features_of(
    entries: Iterable[Entry],
    files: Iterable[FileEntry] | None = None,
    folders: Mapping[str, str] = _NO_FOLDERS,
    containers: Collection[FileEntry] = (),
) -> tuple[str, ...]:
    """Return the required features of a pack: those of the codecs, types, files, folders and heads that it has, and no other."""
    found = {FILE_BASE} if any(file.base for file in files or ()) else set()
    found |= ({FOLDERS} if folders else set()) | ({CONTAINERS} if containers else set())
    for entry in entries:
        found |= {feature for term in entry.terms for feature in term.features}
        if entry.dtype.raw_bits or (entry.base is not None and entry.base.dtype.raw_bits):
            found.add(RAW_TYPES)
        if entry.base is not None and entry.base.arranged is not None:
            found.add(FEATURE)
        if entry.kind == EXACT:
            found.add(EXACT)
    return tuple(sorted(found - {""}))
