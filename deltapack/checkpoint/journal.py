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
from typing import BinaryIO

from deltapack.checkpoint.layout import NewTensor, Shard
from deltapack.checkpoint.manifest import JOURNAL
from deltapack.format.atomic import fsync_folder
from deltapack.format.digest import CHUNK, chunk_digest, root_digest
from deltapack.sources.whole import read_small

__all__ = ["Journal", "file_digest", "identity_of", "journaled", "whole"]

_VERSION = 1
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

    def add(self, shard: Shard, known: Mapping[str, str]) -> None:
        """List a file that is complete and on the disk; raises as `begin`.

        Args:
            shard: The file.
            known: Root digests of tensors in it; the others are read.
        """
        _append(self.folder / JOURNAL, [self._row(shard.file, file_digest(self.folder / shard.file, shard, known))])

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
        lines = read_small(path, _MOST_BYTES, is_input=False).splitlines()
        head = json.loads(lines[0])
        identity = head["identity"] if head["deltapack"] == _VERSION else ""
        for line in lines[1:]:
            row = json.loads(line)
            if type(row["size"]) is int:
                files[str(row["file"])] = row["size"], str(row["digest"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError):  # the last line was cut, or all of it
        return (identity, files) if files else ("", {})
    return str(identity), files


def whole(path: Path, shard: Shard, size: int, said: tuple[int, str]) -> bool:
    """Whether a finished file is as it was left, and as large as it is to be; all of it is read.

    Raises:
        OSError: As the system says.
    """
    regular = path.is_file() and not path.is_symlink()
    return regular and path.stat().st_size == size == said[0] and file_digest(path, shard, {}) == said[1]


def file_digest(path: Path, shard: Shard, known: Mapping[str, str]) -> str:
    """Return a digest of all bytes of a weight file: of its head, and of the root digests of its tensors in the order of their elements.

    Args:
        path: The file.
        shard: What is in it.
        known: Root digests of tensors, which need not be read.

    Raises:
        OSError: As the system says.
    """
    with path.open("rb") as file:
        at = path.stat().st_size - shard.nbytes
        roots = [chunk_digest(file.read(at))]
        for tensor in shard.tensors:
            root = known.get(tensor.name) or _root(file, at, tensor)
            roots.append(root.encode())
            at += tensor.nbytes
    return root_digest("file", (at,), roots)


def _root(file: BinaryIO, at: int, tensor: NewTensor) -> str:
    file.seek(at)
    step = CHUNK * tensor.dtype.itemsize
    sizes = (min(step, tensor.nbytes - start) for start in range(0, tensor.nbytes, step))
    return root_digest(tensor.dtype.name, tensor.shape, (chunk_digest(file.read(size)) for size in sizes))


def _append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("ab") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())
