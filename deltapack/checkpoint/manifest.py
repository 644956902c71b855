"""Whose files are in a folder: a list of what was written there, by which a replacement tells its own files from those of others.

The list is the hidden file `.deltapack.json` in the folder: for each file its size and a SHA-256, of the whole file up to 1 MiB, of
the size and 64 samples of a larger one, so that a checkpoint of any size is listed and looked through in no time. What the samples
miss, times tell: the list is written last, so a large file that is younger was written by someone else. The list itself has no
times in it; the same checkpoint has the same list.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deltapack.checkpoint.sidefiles import is_side_file
from deltapack.errors import OutputError
from deltapack.format.atomic import raise_error

__all__ = [
    "JOURNAL",
    "MANIFEST",
    "WHOLE_BYTES",
    "check_own",
    "entry_of",
    "few",
    "first_other",
    "is_kind",
    "list_of",
    "listed",
    "manifest_of",
    "manifest_text",
    "same_bytes",
]

MANIFEST, JOURNAL = ".deltapack.json", ".deltapack.journal"
_VERSION = 1
WHOLE_BYTES, _SAMPLES, _SAMPLE = 1 << 20, 64, 1 << 12
_MAX_LIST = 1 << 24
_SHOWN = 4
_COMPARED = 1 << 22


def manifest_of(folder: Path, kind: str) -> bytes:
    """Return the list of every file of a folder that is complete.

    Args:
        folder: The folder; everything in it was written by this program.
        kind: What the folder is, `"checkpoint"` or `"demo"`: neither takes the place of the other.

    Raises:
        OSError: As the system says.
    """
    return manifest_text({name: entry_of(folder / name) for name in _names(folder)}, kind)


def entry_of(path: Path) -> dict[str, object]:
    """Return what a list says of a file; raises as `manifest_of`."""
    return {"size": path.stat().st_size, "sha256": _digest(path)}


def manifest_text(files: Mapping[str, object], kind: str) -> bytes:
    """Return the list of files of which `entry_of` told."""
    document = {"deltapack": _VERSION, "kind": kind, "files": dict(files)}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def listed(folder: Path) -> bool:
    """Whether the folder has a list."""
    return (folder / MANIFEST).is_file()


def is_kind(folder: Path, kind: str) -> bool:
    """Whether the folder has a list of this kind."""
    return list_of(folder, kind) is not None


def check_own(folder: Path, kind: str) -> None:
    """Refuse a folder to be replaced that holds anything but what its list says, as it was written.

    Raises:
        OutputError: It has no list of this kind, or holds files that others wrote or changed; the first of them are named.
        OSError: As the system says.
    """
    own = list_of(folder, kind)
    if own is None:
        what = f"the folder has no list of what a {kind} of deltapack wrote there ({MANIFEST}), so all in it may be someone's"
        raise OutputError(what, path=folder, found=few(list(_names(folder))), hint="Move or remove it yourself, or choose another output.")
    listing = (folder / MANIFEST).stat().st_mtime_ns
    others = []
    for name in _names(folder):
        if name not in own:
            others.append(name)
        elif not _unchanged(folder / name, own[name], listing):
            others.append(f"{name} (changed since)")
    if others:
        hint = "Only what it wrote is replaced, and nothing was: move them away, or choose another output."
        whose = "this demo" if kind == "demo" else "deltapack"
        what = f"the folder holds files that {whose} did not write, or that were changed since"
        raise OutputError(what, path=folder, found=few(others), hint=hint)


def first_other(folder: Path, new: Path, heads: Mapping[str, int] | None = None) -> str | None:
    """Return the first file of `folder` that is not the same in `new`, which replaces it; none where no byte would be lost.

    Args:
        folder: What may be replaced.
        new: What replaces it.
        heads: Where `new` is not yet filled, its files that have a size already, and how many of their first bytes are
            written: these are compared, and files that `new` still lacks are passed over.
    """
    for name in _names(folder):
        limit = None if heads is None else heads.get(name)
        if heads is not None and limit is None and is_side_file(name.rpartition("/")[2], include_code=True):
            continue
        if not (new / name).is_file() or not same_bytes(folder / name, new / name, limit):
            return name
    return None


def _names(folder: Path) -> Iterator[str]:
    """Yield what is in a folder but the lists, sorted, with `/`: files, links and whatever else, folders only where they are empty."""
    for where, folders, files in os.walk(folder, onerror=raise_error):  # a folder that is not seen would be removed unseen
        folders.sort()
        prefix = "" if Path(where) == folder else f"{Path(where).relative_to(folder).as_posix()}/"
        if prefix and not folders and not files:
            yield prefix
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        yield from (f"{prefix}{name}" for name in sorted([*links, *files]) if prefix or name not in (MANIFEST, JOURNAL))


def list_of(folder: Path, kind: str) -> Mapping[str, object] | None:
    """Return the files of the list; none where there is no list of this kind that can be understood."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_LIST:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    known = isinstance(document, dict) and document.get("deltapack") == _VERSION and document.get("kind") == kind
    files = document.get("files") if known else None
    return files if isinstance(files, dict) else None


def _unchanged(path: Path, said: object, listing: int) -> bool:
    if path.is_symlink() or not path.is_file() or not isinstance(said, dict):
        return False
    status = path.stat()
    if said.get("size") != status.st_size or said.get("sha256") != _digest(path):
        return False
    return status.st_size <= WHOLE_BYTES or status.st_mtime_ns <= listing


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= WHOLE_BYTES:
            return hashlib.sha256(file.read()).hexdigest()
        state = hashlib.sha256(size.to_bytes(8, "little"))
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            state.update(file.read(_SAMPLE))
        return state.hexdigest()


def same_bytes(one: Path, other: Path, limit: int | None = None) -> bool:
    """Whether two files have one size, and the same bytes up to `limit`; a link is never the same."""
    if one.is_symlink() or not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    left = one.stat().st_size if limit is None else limit
    with open(one, "rb") as a, open(other, "rb") as b:
        while left > 0:
            part = a.read(min(left, _COMPARED))
            if part != b.read(min(left, _COMPARED)) or not part:
                return False
            left -= len(part)
    return True


def few(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
