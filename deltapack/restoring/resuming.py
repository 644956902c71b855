"""What a stopped run has finished of a folder, and another need not do again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltapack._version import __version__
from deltapack.checkpoint import Checkpoint, FileWriter, FolderWriter, Shard
from deltapack.checkpoint.going_on import NEVER, GoesOn, state_of
from deltapack.composing.tensor_job import TensorJob
from deltapack.dtypes import DType
from deltapack.engines import Engine, active
from deltapack.errors import RecipeError
from deltapack.sources.remote_path import RemotePath

__all__ = ["by_file", "check_resume", "goes_on"]


def goes_on(base: Checkpoint, said: Sequence[object], resume: bool, dtype: DType | None, *options: object) -> GoesOn:
    """Return what tells a run that writes the same from one that does not; machines of a cluster do not tell when a file is on the disk.

    Args:
        base: The base.
        said: The packs, and what is made of them, as values of JSON; nothing where nobody goes on.
        resume: Whether to go on.
        dtype: Type of the result.
        options: What else decides on its bytes, or on what is checked.
    """
    if not said or active() is not None:
        return NEVER
    return GoesOn([__version__, *said, None if dtype is None else dtype.name, *options, state_of(base)], resume)


def by_file(jobs: Sequence[TensorJob], shards: Sequence[Shard], writer: FolderWriter | FileWriter) -> Sequence[TensorJob]:
    """Return the jobs that are left to do, file by file, so that files are finished one after the other."""
    number = {tensor.name: at for at, shard in enumerate(shards) for tensor in shard.tensors}
    return sorted((job for job in jobs if job.name not in writer.there), key=lambda job: number[job.name])


def check_resume(out: Path, resume: bool, engine: str | Engine) -> None:
    """Refuse to go on with what is not written file by file.

    Raises:
        RecipeError: The output is one file, or in a store, or a cluster writes it.
    """
    if resume and (out.suffix in (".safetensors", ".dpk") or isinstance(out, RemotePath)):
        raise RecipeError("resume is for folders of this machine", path=out, hint="Leave it out: this output is written as a whole.")
    if resume and engine != "local":
        raise RecipeError("resume is for work on this machine", found=f"engine {engine}", hint="Leave out one of the two.")
