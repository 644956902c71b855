"""What a checkpoint is, by the digests that packs have of one: all of its tensors are read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from itertools import groupby

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.format.digest import CHUNK, chunk_digest, fingerprint, root_digest
from deltapack.parallel import ordered_map
from deltapack.reports import Progress

__all__ = ["digests_of", "fingerprint_of"]


def digests_of(checkpoint: Checkpoint, workers: int, progress: Progress | None = None) -> dict[str, str]:
    """Return the root digest of each tensor of an open checkpoint, by name, sorted as it is.

    Args:
        checkpoint: It stays open.
        workers: Threads.
        progress: Called with bytes done so far and in all.

    Raises:
        CheckpointError: A file was cut since it was opened, or cannot be read.
    """

    def digest(task: tuple[TensorInfo, int]) -> tuple[TensorInfo, int, bytes | None]:
        info, start = task
        stop = min(start + CHUNK, info.numel)
        return info, stop - start, chunk_digest(checkpoint.read(info.name, start, stop)) if info.numel else None

    infos = checkpoint.tensors.values()
    total, done = sum(info.nbytes for info in infos), 0
    found: dict[str, str] = {}
    tasks = ((info, start) for info in infos for start in range(0, max(1, info.numel), CHUNK))
    with closing(ordered_map(digest, tasks, workers)) as digests:
        for info, rows in groupby(digests, key=lambda row: row[0]):
            own = []
            for _, count, chunk in rows:
                own += [] if chunk is None else [chunk]
                done += count * info.dtype.itemsize
                if progress is not None:
                    progress(done, total)
            found[info.name] = root_digest(info.dtype.name, info.shape, own)
    return found


def fingerprint_of(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    """Return the fingerprint of an open checkpoint from the root digests of its tensors."""
    return fingerprint((info.name, info.dtype.name, info.shape, digests[info.name]) for info in checkpoint.tensors.values())
