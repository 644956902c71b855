"""What the index says of files and folders, trusting nothing: rules R4, R6 and R13 for sections 3.7 and 3.9 of spec/03-index.md."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from deltapack.errors import FormatError, LimitError
from deltapack.format.fields import blob_ref, check_keys, count, hexadecimal, sorted_unique, typed
from deltapack.format.folders import folder_of, is_metadata
from deltapack.format.index import Entry, FileEntry
from deltapack.format.paths import PART_BYTES, check_apart, check_path, check_side_name, fold
from deltapack.limits import Limits

__all__ = ["check_files", "check_in_folders", "check_own_names", "parse_file", "parse_folders"]


def parse_file(row: Any, limits: Limits, may_refer: bool) -> FileEntry:
    """Parse an entry of `files`; `may_refer` says whether the pack has the feature by which one refers to the base's file.

    Raises:
        FormatError: Rule R4, R6 or R13 is broken.
    """
    refers = may_refer and type(row) is dict and "base" in row
    optional = {"blob"} if not refers else set()
    check_keys(row, "a file entry", required={"name", "size", "sha256"} | ({"base", "blob"} if refers else set()), optional=optional)
    name = typed(row, "name", str)
    check_side_name(name, limits)
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
    check_apart(folders, "folders")
    for folder in folders:
        check_path(folder, "a folder", limits)
        stem = typed(folders, folder, str)
        check_path(stem, "the weight file of a folder", limits, most=PART_BYTES - 64, plain=True)
    return dict(folders)


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


def check_own_names(entries: Iterable[Entry], folders: Collection[str]) -> None:
    """Refuse a tensor that a header of safetensors would take for its metadata; second names have no place of their own there.

    Raises:
        FormatError: Rule R6 is broken.
    """
    for entry in entries:
        if entry.in_result and is_metadata(entry.name, folders):
            raise FormatError("a tensor has the name of the metadata of a weight file", tensor=entry.name, rule="R6")


def check_files(files: Iterable[FileEntry], folders: Iterable[str], limits: Limits) -> None:
    """Check the files as a list: sorted, within the limits, and none of them a folder, also not one of tensors.

    Raises:
        FormatError: Rule R6 or R13 is broken.
        LimitError: They are too many or too large.
    """
    files = tuple(files)
    names = [file.name for file in files]
    sorted_unique(names, "files")
    check_apart(names, "side files")
    by_fold = {fold(name): name for name in names}
    paths = [*by_fold, *(f"{fold(folder)}/" for folder in folders)]
    above = {path[:end] for path in paths for end in range(len(path)) if path[end] == "/"}
    if not above.isdisjoint(by_fold):
        raise FormatError("a side file is also a folder", rule="R13", found=by_fold[min(above.intersection(by_fold))])
    total = sum(file.size for file in files)
    largest = max((file.size for file in files), default=0)
    if largest > limits.side_file_bytes or total > limits.side_files_bytes or len(files) > limits.side_files:
        found = f"{len(files)} files, {total} bytes, the largest {largest}"
        raise LimitError("too many or too large side files", rule="R6", found=found)
