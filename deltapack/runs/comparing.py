"""Is a checkpoint what a pack says? Its files and heads are told fast; its tensors only by reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.errors import DeltapackError
from deltapack.format.forms import is_descriptive
from deltapack.format.reader import PackReader
from deltapack.parallel import resolve_workers
from deltapack.restoring.identifying import digests_of
from deltapack.restoring.identifying import fingerprint_of as fingerprint_of_open
from deltapack.runs.finding import Signature
from deltapack.runs.links import Link

__all__ = ["fingerprint_of", "has_changed", "looks_as_packed", "times_of"]


def fingerprint_of(checkpoint: Path, workers: int | None = None) -> str:
    """Return the fingerprint of a checkpoint, as packs have it of their base and of their result; all of its tensors are read.

    Raises:
        CheckpointError: The checkpoint is damaged or none.
        RecipeError: The number of threads is out of range.
        UnsupportedError: It holds weights that are not read.
    """
    with open_checkpoint(checkpoint) as opened:
        return _fingerprint(opened, workers)


def times_of(checkpoint: Path) -> Signature | None:
    """Return the signature of those files of a checkpoint that packs are made of; none where it cannot be read.

    What trainers write beside them does not count: other processes may be at it while the first one packs.
    """
    try:
        with open_checkpoint(checkpoint) as opened:
            indices = checkpoint.glob("*.index.json") if opened.is_folder else ()
            paths = {*opened.weight_paths(), *(file.path for file in opened.list_side_files()[0]), *indices}
        rows = [(str(path), path.stat()) for path in sorted(paths)]
    except (DeltapackError, OSError):
        return None
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in rows)


def looks_as_packed(checkpoint: Path, link: Link) -> bool:
    """Whether the files beside the weights of a checkpoint, and the heads of its weight files, are those of its pack.

    The weights themselves are read when they are used, and have a fingerprint then.
    """
    try:
        with open_checkpoint(checkpoint) as opened:
            return _same_parts(opened, link, lambda name: True)
    except DeltapackError:
        return False


def has_changed(checkpoint: Path, link: Link, workers: int | None = None) -> bool:
    """Whether a checkpoint can be read and is another than its pack gives; texts for people do not count.

    One that cannot be read, or is gone, is no reason to make its pack anew: the pack may be all that is left.
    """
    try:
        with open_checkpoint(checkpoint) as opened:
            same = _same_parts(opened, link, lambda name: not is_descriptive(name))
            return not same or _fingerprint(opened, workers) != link.result
    except DeltapackError:
        return False


def _fingerprint(opened: Checkpoint, workers: int | None) -> str:
    return fingerprint_of_open(opened, digests_of(opened, resolve_workers(workers)))


def _same_parts(opened: Checkpoint, link: Link, counts: Callable[[str], bool]) -> bool:
    """Whether the files beside the weights that count, and the heads that the pack has, are those of the pack."""
    with PackReader(link.path) as pack:
        files, _ = opened.list_side_files()
        heads = {container.name: opened.head(container.name) for container in pack.index.containers}
        found = {name: _sha256(data) for name, data in heads.items() if data is not None}
        found |= {file.name: _sha256(file.read()) for file in files if counts(file.name)}
        packed = (*(file for file in pack.index.files or () if counts(file.name)), *pack.index.containers)
        return found == {file.name: file.sha256 for file in packed}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
