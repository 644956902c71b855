"""What the index says of the heads of weight files, trusting nothing: rules R4, R6 and R13 for section 3.13 of spec/03-index.md."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from deltapack.errors import FormatError, LimitError
from deltapack.format.fields import blob_ref, check_keys, count, hexadecimal, sorted_unique, typed
from deltapack.format.folders import is_index_of_shards
from deltapack.format.index import FileEntry
from deltapack.format.paths import check_apart, check_path
from deltapack.limits import Limits

__all__ = ["CONTAINERS", "check_containers", "check_head_name", "parse_containers", "restored_weight_files"]

CONTAINERS = "containers"
"""The required feature of a pack that has heads of weight files."""


class _Named(Protocol):
    @property
    def name(self) -> str:
        """That of a file."""


def restored_weight_files(containers: Sequence[_Named]) -> int:
    """Return how many weight files come back byte for byte, all or none; an index of shards is none."""
    return sum(not is_index_of_shards(container.name) for container in containers)


def parse_containers(top: Any, limits: Limits) -> tuple[FileEntry, ...]:
    """Parse `containers`.

    Raises:
        FormatError: Rule R4, R6 or R13 is broken.
    """
    return tuple(_parse(row, limits) for row in typed(top, CONTAINERS, list))


def _parse(row: Any, limits: Limits) -> FileEntry:
    check_keys(row, "a container", required={"name", "size", "sha256"}, optional={"blob", "base"})
    if "base" in row and "blob" not in row:
        raise FormatError("a container refers to the base's and holds nothing", rule="R4")
    name = typed(row, "name", str)
    check_head_name(name, limits)
    blob, base = blob_ref(row, "blob") if "blob" in row else None, hexadecimal(row, "base", 64) if "base" in row else ""
    return FileEntry(name, count(row, "size"), hexadecimal(row, "sha256", 64), blob, base)


def check_head_name(name: str, limits: Limits) -> None:
    """Refuse a name that is not that of a weight file, or of an index of shards, below a folder.

    Raises:
        FormatError: Rule R13 is broken.
    """
    check_path(name, "a weight file", limits, is_weights=True)


def check_containers(containers: Sequence[FileEntry], folders: Collection[str], limits: Limits) -> None:
    """Check the heads as a list: sorted, within the limits, in folders that have tensors, and in each of these one file or one index.

    Raises:
        FormatError: Rule R6 is broken.
        LimitError: They are too many or too large.
    """
    if not containers:
        raise FormatError("no containers", rule="R6")
    sorted_unique([container.name for container in containers], "containers")
    check_apart([container.name for container in containers], "weight files")
    largest, total = max(container.size for container in containers), sum(container.size for container in containers)
    if len(containers) > limits.heads or largest > limits.header_bytes + 8 or total > limits.heads_bytes:
        found = f"{len(containers)} heads, {total} bytes, the largest {largest}"
        raise LimitError("too many or too large heads of weight files", rule="R6", found=found)
    numbers: dict[str, list[int]] = {}
    for container in containers:
        of_folder = numbers.setdefault(container.name.rpartition("/")[0], [0, 0])
        of_folder[is_index_of_shards(container.name)] += 1
    for folder, (files, indices) in numbers.items():
        if folder and folder not in folders:
            raise FormatError("a weight file is in a folder without tensors", rule="R6", found=folder)
        if not files or indices > 1 or (files > 1 and not indices):
            found = f"{files} files and {indices} indices in {folder or 'the top folder'!r}"
            raise FormatError(
                "the weight files of a folder do not go together", rule="R6", expected="one, or those of one index", found=found
            )
