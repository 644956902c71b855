"""Is the result there already? A retry, or a machine that is told twice, then has nothing to do."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.checkpoint.sidefiles import is_training_state
from deltapack.composing.compose import Composition
from deltapack.composing.containers import WeightFiles
from deltapack.composing.tensor_job import TensorJob
from deltapack.errors import DeltapackError
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest
from deltapack.format.forms import is_descriptive
from deltapack.format.paths import is_weight_file
from deltapack.parallel import ordered_map
from deltapack.sources.inputs import looking

__all__ = ["is_there"]

_LOADED = (".json", ".py", ".model", ".jinja", "vocab.txt", "merges.txt")
"""What the names of files end in that loaders look for whether or not a config names them."""


def is_there(out: Path, base: Checkpoint, composition: Composition, workers: int, files: WeightFiles | None = None) -> bool:
    """Whether an output holds the very tensors, side files and weight files that a composition gives; all of its tensors are read.

    Texts for people do not count, nor does a trainer's state; other weights beside them do, and files that a model works with.

    Args:
        out: The output, which need not exist, or be a checkpoint.
        base: The base of the composition.
        composition: What is to be restored; with a digest for each tensor, else the answer is no.
        workers: Threads.
        files: The weight files, where they are to be byte for byte those of the fine-tune.
    """
    if not out.exists():
        return False
    try:
        with looking(), open_checkpoint(out) as there:
            found = {name: (info.dtype, info.shape) for name, info in there.tensors.items()}
            wanted = {job.name: (job.dtype, job.shape) for job in composition.jobs}
            same = found == wanted and dict(there.aliases) == dict(composition.aliases)
            same = same and (files is None or _has_heads(there, files))
            return same and _has_files(there, base, composition) and _has_elements(there, composition.jobs, workers)
    except DeltapackError:  # something else, or damaged: whoever writes will say what is to be said of it
        return False


def _has_heads(there: Checkpoint, files: WeightFiles) -> bool:
    """Whether the weight files are those, by all that stands in them besides elements; of one file, the name does not count."""
    shards, indices = files
    found = {head.name: head.data for head in there.heads()}
    if not there.is_folder:
        return list(found.values()) == [shard.head for shard in shards]
    return found == {shard.file: shard.head for shard in shards} | {head.name: head.data for head in indices}


def _has_elements(there: Checkpoint, jobs: Sequence[TensorJob], workers: int) -> bool:
    """Whether all tensors have the digests of the jobs."""

    def digest(task: tuple[TensorJob, int]) -> tuple[TensorJob, bytes]:
        job, start = task
        return job, chunk_digest(there.read(job.name, start, min(start + CHUNK, job.numel)))

    if any(not job.digest for job in jobs):
        return False
    empty = [job for job in jobs if not job.numel]
    tasks = ((job, chunk * CHUNK) for job in jobs for chunk in range(chunk_count(job.numel)))
    with closing(ordered_map(digest, tasks, workers)) as digests:
        for job, rows in groupby(digests, key=lambda row: row[0]):
            if root_digest(job.dtype.name, job.shape, (row[1] for row in rows)) != job.digest:
                return False
    return all(root_digest(job.dtype.name, job.shape, ()) == job.digest for job in empty)


def _has_files(there: Checkpoint, base: Checkpoint, composition: Composition) -> bool:
    """Whether all side files are there that a model works with; one file has none."""
    if not there.is_folder:
        return True
    pack = composition.assets
    if pack is not None and pack.index.files is not None:
        wanted = {file.name: file.sha256 for file in pack.index.files if not is_descriptive(file.name)}
    else:
        wanted = {file.name: _sha256(file.read()) for file in base.side_files() if not is_descriptive(file.name)}
    if _has_others(there, wanted):
        return False
    found = {name: there.side_file(name) for name in wanted}
    return all(file is not None and _sha256(file.read()) == wanted[name] for name, file in found.items())


def _has_others(there: Checkpoint, wanted: Collection[str]) -> bool:
    """Whether a folder holds more that a loader would take: an adapter, weights of another format, a tokenizer."""
    if any(file.name not in wanted and file.name.endswith(_LOADED) for file in there.side_files()):
        return True
    ours = set(there.weight_paths())
    weights = (path for path in there.path.rglob("*") if is_weight_file(path.name) and not is_training_state(path.name))
    return any(path not in ours and not path.name.endswith(".index.json") for path in weights)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
