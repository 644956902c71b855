"""What is restored for an object store, and in which order; files of the base that stay as they are can be copied by the store itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltapack.checkpoint import Checkpoint, FileWriter, FolderWriter, Shard
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.sources.remote_path import RemotePath

__all__ = ["jobs_to_send"]


def jobs_to_send(
    base: Checkpoint, jobs: Sequence[TensorJob], shards: Sequence[Shard], writer: FolderWriter | FileWriter, *, verify: bool
) -> Sequence[TensorJob]:
    """Return what is to be restored: of a folder in a store file by file, as each is sent when it is complete.

    Without `verify` the store copies what is the base's and lies there, too; to compare digests, it has to be read.

    Raises:
        CheckpointError: A head of the base cannot be read.
        SourceError: The store refuses, or does not answer.
    """
    if not isinstance(writer.out, RemotePath) or not isinstance(writer, FolderWriter):
        return jobs
    copied: set[str] = set()
    if not verify:
        for file, place in _same_files(base, jobs, shards, writer.out):
            writer.copy_file(file, place)
            copied.add(file)
    by_name = {job.name: job for job in jobs}
    return [by_name[tensor.name] for shard in shards if shard.file not in copied for tensor in shard.tensors]


def _same_files(base: Checkpoint, jobs: Sequence[TensorJob], shards: Sequence[Shard], out: RemotePath) -> Iterator[tuple[str, RemotePath]]:
    """Yield the name and the place of each file of the base that the result has as it is: the head, and every tensor in it.

    Args:
        base: The base; none of its files is yielded unless they are in the store of `out`.
        jobs: What is to be restored.
        shards: The weight files of the result; those whose head is not known are made anew.
        out: The output.

    Raises:
        CheckpointError: A head of the base cannot be read.
    """
    places = {path.name: path for path in base.weight_paths() if isinstance(path, RemotePath) and path.url.scheme == out.url.scheme}
    tensors, by_name = dict(base.weight_shards()), {job.name: job for job in jobs}
    for shard in shards:
        names = [tensor.name for tensor in shard.tensors]
        stays = shard.head and shard.file in places and tensors.get(shard.file) == names and all(_stays(by_name[name]) for name in names)
        if stays and base.head(shard.file) == shard.head:
            yield shard.file, places[shard.file]


def _stays(job: TensorJob) -> bool:
    source = job.source
    if not isinstance(source, FromBase) or source.terms or source.rows is not None or source.exact is not None:
        return False
    base = source.base
    return base.arranged is None and (base.name, base.dtype, base.shape) == (job.name, job.dtype, job.shape)
