"""Content ids of packs (spec/03-index.md section 3.14); shares no code with the package or the reference decoder."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import zstandard

_PEOPLE = ("readme", "license", "licence", "notice", "copying", "use_policy", "citation", "changelog", "authors", "contributing")


def is_for_people(name: str) -> bool:
    """Whether a file is descriptive (3.7)."""
    last = name.split("/")[-1].lower()
    return last.endswith((".md", ".rst")) or any(
        last == word or last.startswith(tuple(word + end for end in "-._ ")) for word in (*_PEOPLE, "requirements")
    )


def index_of(pack: bytes) -> Any:
    """The index of a pack that is valid."""
    offset, length = struct.unpack_from("<QQ", pack, 24)
    return json.loads(zstandard.ZstdDecompressor().decompress(pack[offset : offset + length]))


def content_id(pack: bytes) -> str:
    """The content id of a pack that is valid."""
    index = index_of(pack)
    rows = [["dpk-content-1"], ["tensors", index["result"]["fingerprint"]]]
    rows += [["alias", entry["name"], entry["of"]] for entry in index["tensors"] if "of" in entry]
    rows += [["folder", name] for name in sorted(index.get("folders", ()), key=lambda name: name.encode())]
    if index["files"] is not None:
        rows += [["files"], *(["file", file["name"], file["sha256"]] for file in index["files"] if not is_for_people(file["name"]))]
    return hashlib.sha256(b"".join("\0".join(row).encode() + b"\n" for row in rows)).hexdigest()
