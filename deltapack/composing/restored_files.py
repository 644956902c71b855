"""The side files that packs restore one after the other; only those that a pack brought are held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltapack.checkpoint import Checkpoint, SideFile
from deltapack.composing.assets import side_file_of
from deltapack.format.reader import PackReader

__all__ = ["files_after"]


@dataclass(frozen=True)
class _HeldFile(SideFile):
    """A file that no folder has."""

    data: bytes = b""

    def read(self) -> bytes:
        """Return the content."""
        return self.data


@dataclass(frozen=True)
class _Folder:
    """The files that the packs so far restore; `files` none: those of the base."""

    base: Checkpoint
    files: Mapping[str, SideFile] | None = None

    @property
    def path(self) -> Path:
        """The base, for messages."""
        return self.base.path

    @property
    def is_folder(self) -> bool:
        """Whether the base is one."""
        return self.base.is_folder

    def side_file(self, name: str) -> SideFile | None:
        """Return the file of this name."""
        return self.base.side_file(name) if self.files is None else self.files.get(name)


def files_after(base: Checkpoint, packs: Sequence[PackReader], *, verify: bool) -> dict[str, SideFile] | None:
    """Return the side files that the last pack leaves, by name; none where no pack speaks of any, so that they are the base's.

    Args:
        base: The base of the first pack.
        packs: The packs in order.
        verify: Whether files of the base must be the ones that the first pack knew.

    Raises:
        BaseMismatchError: The base lacks a file that is needed, or has another one.
        FormatError: A file in a pack is damaged.
    """
    files: dict[str, SideFile] | None = None
    known: dict[str, str] = {}
    for pack in (pack for pack in packs if pack.index.files is not None):
        before, same = _Folder(base, files), known
        files, known = {}, {}
        for entry in pack.index.files or ():
            at_hand = before.side_file(entry.name)
            if entry.blob is None and at_hand is not None and same.get(entry.name) == entry.sha256:
                files[entry.name], known[entry.name] = at_hand, entry.sha256
                continue
            data = side_file_of(before, pack, entry, verify=verify)
            if data is not None:
                as_it_is = at_hand is not None and at_hand.size == len(data) and at_hand.read() == data
                held = _HeldFile(entry.name, len(data), base.path / entry.name, (0, len(data), 0), data)
                files[entry.name] = at_hand if as_it_is and at_hand is not None else held
                known[entry.name] = hashlib.sha256(data).hexdigest()
    return files
