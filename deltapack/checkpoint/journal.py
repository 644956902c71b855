"""What is finished of a folder that is not: a list of its complete weight files, by which a run goes on where another was stopped.

The hidden file `.deltapack.journal` lies in the unfinished folder. Its first line says what is made there of what, in one digest; a line
for each file follows when that is on the disk, with its size and a digest of its bytes. It goes just before the folder gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltapack.checkpoint.manifest import JOURNAL
from deltapack.format.atomic import fsync_folder
from deltapack.format.digest import chunk_digest, root_digest

__all__ = ["Journal", "identity_of", "journaled", "whole"]

_VERSION = 1
_BLOCK = 1 << 23
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Journal:
    """The list of an unfinished folder.

    Attributes:
        folder: The folder.
        identity: What is made there of what.
    """

    folder: Path
    identity: str

    def begin(self, finished: Mapping[str, str]) -> None:
        """Write the list anew, durably, as are the names of all files that are there.

        Args:
            finished: From file to digest.

        Raises:
            OSError: As the system says.
        """
        new = self.folder / f"{JOURNAL}.new"
        rows = [{"deltapack": _VERSION, "identity": self.identity}, *(self._row(file, digest) for file, digest in finished.items())]
        _append(new, rows)
        os.replace(new, self.folder / JOURNAL)
        for where, _, _ in os.walk(self.folder):
            fsync_folder(Path(where))

    def add(self, file: str) -> None:
        """List a file that is complete and on the disk; raises as `begin`."""
        _append(self.folder / JOURNAL, [self._row(file, _digest(self.folder / file))])

    def remove(self) -> None:
        """Remove the list: the folder is finished."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def _row(self, file: str, digest: str) -> dict[str, object]:
        return {"file": file, "size": (self.folder / file).stat().st_size, "digest": digest}


def identity_of(said: object, heads: Iterable[tuple[str, bytes]]) -> str:
    """Return the digest of what is made of what.

    Args:
        said: Base, packs and options, as values of JSON.
        heads: The weight files and how they begin.
    """
    files = [(file, hashlib.sha256(head).hexdigest()) for file, head in heads]
    return hashlib.sha256(json.dumps([said, files], sort_keys=True, default=str).encode()).hexdigest()


def journaled(folder: Path) -> tuple[str, Mapping[str, tuple[int, str]]]:
    """Return the identity that an unfinished folder states, and its finished files with size and digest; `""` where it states none."""
    path, files = folder / JOURNAL, dict[str, tuple[int, str]]()
    try:
        with path.open("rb") as opened:
            lines = opened.read(_MOST_BYTES).splitlines()
        head = json.loads(lines[0])
        identity = head["identity"] if head["deltapack"] == _VERSION else ""
        for line in lines[1:]:
            row = json.loads(line)
            files[str(row["file"])] = int(row["size"]), str(row["digest"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError):  # the last line was cut, or all of it
        return (identity, files) if files else ("", {})
    return str(identity), files


def whole(path: Path, size: int, said: tuple[int, str]) -> bool:
    """Whether a finished file is as it was left, and as large as it is to be.

    Raises:
        OSError: As the system says.
    """
    regular = path.is_file() and not path.is_symlink()
    return regular and path.stat().st_size == size == said[0] and _digest(path) == said[1]


def _append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("ab") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return root_digest("file", (path.stat().st_size,), (chunk_digest(block) for block in iter(lambda: file.read(_BLOCK), b"")))
