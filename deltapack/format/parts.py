"""Packs in numbered parts: slices of a pack's bytes, and the small index that says which. Implements spec/11-parts.md.

`NAME-00001-of-00004.dpk` and so on lie beside `NAME.dpk.index.json`; `cat NAME-*-of-00004.dpk > NAME.dpk` joins them.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltapack.errors import ChecksumError, FormatError, LimitError
from deltapack.format.canonical import unique_keys
from deltapack.format.prologue import MAGIC
from deltapack.sources.joined import JoinedFile
from deltapack.sources.opening import open_file
from deltapack.sources.parts import parts_index_of
from deltapack.sources.reading import Faults, Readable
from deltapack.sources.urls import is_plain_name

__all__ = ["MOST_PARTS", "Part", "Parts", "check_parts", "open_pack_file", "parse_parts", "part_name", "parts_text", "read_parts"]

MOST_PARTS = 1_000
"""All of them are open at once."""
_FORMAT, _VERSION = "deltapack-parts", 1
_MOST_BYTES = 1 << 25
_BLOCK, _SHOWN = 1 << 23, 120
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HINT = "Fetch the parts and their index again; `deltapack split` writes them."


@dataclass(frozen=True)
class Part:
    """A part: its name, its size in bytes, and the SHA-256 of them."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Parts:
    """What the index of parts says: the id of the pack, its size in bytes, and its parts in order."""

    pack_id: str
    size: int
    parts: tuple[Part, ...]

    @property
    def stem(self) -> str:
        """What the names of the parts begin with."""
        return self.parts[0].name[: -len("-00001-of-00001.dpk")]


def part_name(stem: str, number: int, count: int) -> str:
    """Return the name of a part.

    >>> part_name("math", 1, 4)
    'math-00001-of-00004.dpk'
    """
    return f"{stem}-{number:05d}-of-{count:05d}.dpk"


def parts_text(parts: Parts) -> bytes:
    """Return the index as it is written."""
    return (json.dumps({"format": _FORMAT, "version": _VERSION, **asdict(parts)}, indent=1) + "\n").encode()


def parse_parts(data: bytes, path: Path) -> Parts:
    """Return what an index says, checked.

    Args:
        data: The index.
        path: What it is called in errors.

    Raises:
        FormatError: It is none, names files that are no parts of one pack, or sizes that do not add up.
    """
    document = _object(data, path)
    _need(document.get("format") == _FORMAT, path, "this is no index of the parts of a pack", _FORMAT, document.get("format"))
    version = document.get("version")
    _need(type(version) is int and version == _VERSION, path, "the index of parts has a version that is not read", 1, version)
    expected = {"format", "version", "pack_id", "size", "parts"}
    _need(set(document) == expected, path, "the index of parts has other fields", sorted(expected), sorted(document))
    pack_id, size, rows = document["pack_id"], document["size"], document["parts"]
    _need(_is_digest(pack_id), path, "the id of the pack is none", "64 hexadecimal digits", pack_id)
    _need(isinstance(rows, list) and 0 < len(rows) <= MOST_PARTS, path, "there are no parts, or too many", f"1 to {MOST_PARTS}", None)
    stem, parts = None, []
    for number, row in enumerate(rows, 1):
        part = _part(row, path)
        match = re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.dpk", part.name)
        stem = stem if stem is not None or match is None else match[1]
        wanted = part_name(stem or "NAME", number, len(rows))
        _need(part.name == wanted, path, f"part {number} has another name", wanted, part.name)
        parts.append(part)
    total = sum(part.size for part in parts)
    _need(type(size) is int and size == total, path, "the sizes of the parts do not add up to that of the pack", size, total)
    return Parts(pack_id, total, tuple(parts))


def open_pack_file(path: Path, faults: Faults) -> tuple[Readable, Parts | None]:
    """Open a pack: one file, or its parts by the index, the first part, or the name of the whole.

    Raises:
        DeltapackError: As `faults` says.
        FormatError: The index is damaged, a part is missing or has another size.
        SourceError: A file of another machine cannot be reached.
    """
    place = parts_index_of(path)
    if place is None:
        return open_file(path, faults), None
    index = read_parts(place, faults)
    with ExitStack() as stack:
        files = []
        for part in index.parts:
            files.append(_open_part(place, part, faults))
            stack.callback(files[-1].close)
        joined = JoinedFile(path, files, faults)
        if joined.read(0, min(len(MAGIC), joined.size)) != MAGIC:
            what = "the first part does not begin as a pack: it is damaged, or has changed places with another"
            raise FormatError(what, path=files[0].path, hint=_HINT)
        stack.pop_all()
        return joined, index


def read_parts(place: Path, faults: Faults) -> Parts:
    """Read the index of parts at a place; raises as `open_pack_file`."""
    file = open_file(place, faults)
    try:
        if file.size > _MOST_BYTES:
            raise LimitError("the index of parts is too large", path=place, expected=f"at most {_MOST_BYTES} bytes", found=file.size)
        return parse_parts(file.read(0, file.size), place)
    finally:
        file.close()


def check_parts(file: Readable, index: Parts | None) -> None:
    """Compare the digest of each part of what `open_pack_file` has opened, for `verify`.

    Raises:
        ChecksumError: One is another.
    """
    if index is None or not isinstance(file, JoinedFile):
        return
    for opened, part in zip(file.parts, index.parts, strict=True):
        state = hashlib.sha256()
        for start in range(0, part.size, _BLOCK):
            state.update(opened.read(start, min(_BLOCK, part.size - start)))
        if state.hexdigest() != part.sha256:
            what = "the part is damaged, or has changed places with another"
            raise ChecksumError(what, path=opened.path, expected=part.sha256, found=state.hexdigest(), hint=_HINT)


def _open_part(place: Path, part: Part, faults: Faults) -> Readable:
    """Open a part that lies beside the index."""
    path = place.with_name(part.name)
    if not path.exists():
        raise FormatError("a part of the pack is missing", path=path, expected=f"{part.size} bytes", hint=_HINT)
    file = open_file(path, faults)
    if file.size != part.size:
        file.close()
        raise FormatError("a part of the pack has another size", path=path, expected=f"{part.size} bytes", found=file.size, hint=_HINT)
    return file


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(data.decode(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the index of parts is no JSON: {error}", path=path, hint=_HINT) from error
    _need(isinstance(document, dict), path, "the index of parts is no object", "an object", type(document).__name__)
    return dict(document)


def _part(row: object, path: Path) -> Part:
    right = isinstance(row, dict) and set(row) == {"name", "size", "sha256"}
    _need(right, path, "a part is described otherwise", "name, size and sha256", row)
    assert isinstance(row, dict)
    name, size, sha256 = row["name"], row["size"], row["sha256"]
    _need(isinstance(name, str) and is_plain_name(name), path, "a part has a name that is none of a file beside the index", None, name)
    _need(type(size) is int and 0 < size < 1 << 63, path, f"the size of {name} is none", "a whole number above 0", size)
    _need(_is_digest(sha256), path, f"the digest of {name} is none", "64 hexadecimal digits", sha256)
    return Part(name, size, sha256)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _need(holds: bool, path: Path, what: str, expected: object, found: object) -> None:
    if not holds:
        shown = None if found is None else repr(found)[:_SHOWN]
        raise FormatError(what, path=path, expected=expected, found=shown, hint=_HINT)
