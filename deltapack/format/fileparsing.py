"""What the index says of files and folders, trusting nothing: rules R4, R6 and R13 for sections 3.7 and 3.9 of spec/03-index.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deltapack.errors import FormatError, LimitError
from deltapack.format.fields import CONTROL, blob_ref, check_keys, count, hexadecimal, sorted_unique, typed
from deltapack.format.folders import folder_of
from deltapack.format.index import Entry, FileEntry
from deltapack.limits import Limits

__all__ = ["check_files", "check_in_folders", "check_path", "parse_file", "parse_folders"]

_PART_BYTES = 255
"""No file system takes a longer name."""
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def parse_file(row: Any, limits: Limits, may_refer: bool) -> FileEntry:
    """Parse an entry of `files`; `may_refer` says whether the pack has the feature by which one refers to the base's file.

    Raises:
        FormatError: Rule R4, R6 or R13 is broken.
    """
    refers = may_refer and type(row) is dict and "base" in row
    optional = {"blob"} if not refers else set()
    check_keys(row, "a file entry", required={"name", "size", "sha256"} | ({"base", "blob"} if refers else set()), optional=optional)
    name = typed(row, "name", str)
    check_path(name, "a side file", limits)
    blob = blob_ref(row, "blob") if "blob" in row else None
    return FileEntry(name, count(row, "size"), hexadecimal(row, "sha256", 64), blob, hexadecimal(row, "base", 64) if refers else "")


def parse_folders(top: Any, limits: Limits) -> dict[str, str]:
    """Parse `folders`.

    Raises:
        FormatError: Rule R4, R6 or R13 is broken.
    """
    folders = typed(top, "folders", dict)
    if not folders:
        raise FormatError("no folders", rule="R6")
    for folder in folders:
        check_path(folder, "a folder", limits)
        stem = typed(folders, folder, str)
        check_path(stem, "the weight file of a folder", limits, most=_PART_BYTES - 64, plain=True)
    return dict(folders)


def check_path(name: str, what: str, limits: Limits, *, most: int = _PART_BYTES, plain: bool = False, is_weights: bool = False) -> None:
    """Refuse a name that could leave the output folder, hide in it, confuse a file system or replace the tensors.

    Args:
        name: The name.
        what: Whose it is, for the message.
        limits: Bounds on its length.
        most: Bytes of one part.
        plain: Whether it must have one part only.
        is_weights: Whether its last part must end as one of weights does, in lower case, instead of must not.

    Raises:
        FormatError: Rule R13 is broken.
    """
    parts = name.split("/")
    safe = all(part[:1] not in ("", ".") and len(part.encode()) <= most for part in parts) and not set("\\:") & set(name)
    weights = any(part.lower().endswith(_WEIGHTS) for part in parts[: -1 if is_weights else None])
    weights |= is_weights and not parts[-1].endswith(_WEIGHTS)
    if not safe or weights or CONTROL.search(name) or len(name.encode()) > limits.name_bytes or (plain and len(parts) > 1):
        hint = "Do not trust this pack."
        raise FormatError(f"{what} has a name that is not a plain path", rule="R13", found=name, hint=hint)


def check_in_folders(entries: Iterable[Entry], folders: Mapping[str, str]) -> None:
    """Check that each folder has a tensor, each tensor of a folder a name of its own, and second names stand beside the first.

    Raises:
        FormatError: Rule R6 is broken.
    """
    if not folders:
        return
    empty = set(folders)
    for entry in entries:
        folder = folder_of(entry.name, folders)
        if entry.kind == "removed" or not folder:
            other = entry.kind == "alias" and bool(folder_of(entry.of, folders))
        else:
            other = entry.kind == "alias" and folder_of(entry.of, folders) != folder
            empty.discard(folder)
            if entry.name == folder + "/":
                raise FormatError("a tensor of a folder has no name of its own", tensor=entry.name, rule="R6")
        if other:
            raise FormatError("an alias of a tensor in another folder", tensor=entry.name, rule="R6", found=entry.of)
    if empty:
        raise FormatError("a folder has no tensor", rule="R6", found=min(empty))


def check_files(files: Iterable[FileEntry], folders: Iterable[str], limits: Limits) -> None:
    """Check the files as a list: sorted, within the limits, and none of them a folder, also not one of tensors.

    Raises:
        FormatError: Rule R6 or R13 is broken.
        LimitError: They are too many or too large.
    """
    files = tuple(files)
    names = [file.name for file in files]
    sorted_unique(names, "files")
    paths = [*names, *(f"{folder}/" for folder in folders)]
    above = {path[:end] for path in paths for end in range(len(path)) if path[end] == "/"}
    if not above.isdisjoint(names):
        raise FormatError("a side file is also a folder", rule="R13", found=min(above.intersection(names)))
    total = sum(file.size for file in files)
    largest = max((file.size for file in files), default=0)
    if largest > limits.side_file_bytes or total > limits.side_files_bytes or len(files) > limits.side_files:
        found = f"{len(files)} files, {total} bytes, the largest {largest}"
        raise LimitError("too many or too large side files", rule="R6", found=found)
