"""What a pack says of the headers of the weight files it restores. Implements spec/03-index.md section 3.11."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltapack.errors import FormatError
from deltapack.format.fields import typed
from deltapack.format.index import Index

__all__ = ["check_metadata", "metadata_of", "optional_metadata"]

METADATA = "dpk.metadata"
"""The key of `optional`."""


def check_metadata(optional: Mapping[str, Any]) -> None:
    """Require that metadata, where there are any, are strings by folder.

    Raises:
        FormatError: Rule R4 is broken.
    """
    for folder, found in (typed(optional, METADATA, dict) if METADATA in optional else {}).items():
        if type(found) is not dict or not all(type(text) is str for text in found.values()):
            raise FormatError("the metadata of weight files are not an object of strings", rule="R4", found=folder)


def metadata_of(index: Index) -> Mapping[str, Mapping[str, str]]:
    """Return the free strings for the headers of the weight files, by folder; a folder of which the pack says nothing is not there."""
    found: Mapping[str, Mapping[str, str]] = index.optional.get(METADATA, {})
    return found


def optional_metadata(metadata: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return what `optional` says of metadata by folder: nothing where there are none, or what a reader writes anyway."""
    said = {folder: dict(strings) for folder, strings in sorted(metadata.items()) if strings and strings != {"format": "pt"}}
    return {METADATA: said} if said else {}
