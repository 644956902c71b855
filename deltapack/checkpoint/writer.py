"""Checkpoints written as a stream: headers first, then elements in any order from any thread, all or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from deltapack.checkpoint.going_on import NEVER, GoesOn
from deltapack.checkpoint.heads import Head, new_indices
from deltapack.checkpoint.layout import Shard, parse_size, plan_shards
from deltapack.checkpoint.metadata import Strings
from deltapack.checkpoint.replace import check_output
from deltapack.checkpoint.writers import FileWriter, FolderWriter
from deltapack.errors import RecipeError
from deltapack.sources.inputs import check_protected
from deltapack.sources.remote_path import RemotePath

__all__ = ["FileWriter", "FolderWriter", "Shard", "open_writer", "parse_size", "plan_shards"]


def _writers(out: Path) -> tuple[type[FileWriter], type[FolderWriter]]:
    """Return what writes a file there, and what a folder."""
    if not isinstance(out, RemotePath):
        return FileWriter, FolderWriter
    from deltapack.checkpoint.uploading import RemoteFileWriter, RemoteFolderWriter  # only who sends pays for importing it

    return RemoteFileWriter, RemoteFolderWriter


@contextlib.contextmanager
def open_writer(
    out: str | Path,
    shards: Sequence[Shard],
    *,
    force: bool = False,
    protect: Sequence[Path] = (),
    aliases: Mapping[str, str] | None = None,
    metadata: Strings = MappingProxyType({}),
    side_bytes: int = 0,
    indices: Sequence[Head] | None = None,
    goes_on: GoesOn = NEVER,
) -> Iterator[FolderWriter | FileWriter]:
    """Open a checkpoint for writing: one file where `out` ends in `.safetensors`, else a folder.

    `out` appears when the block ends, complete and on the disk; on any exception nothing is left behind, but for what `goes_on` keeps. In
    an object store the files of a folder appear one by one, its list last.

    Args:
        out: The output.
        shards: What to write, from `plan_shards` or `shards_of_heads`; a file output joins them, and only a shard that is alone keeps
            its head.
        force: Whether an existing checkpoint may be replaced; of a folder only what this program wrote, else nothing.
        protect: Inputs; the output must not be, hold, or lie in one.
        aliases: From the second names of tied tensors to the names that are written.
        metadata: Free strings for the headers, by folder (`""`: the output itself); `{"format": "pt"}` where there are none for one.
        side_bytes: Expected size of the side files, for the check of free space.
        indices: Heads of the indices of shards, which a file output has none of; made of the shards where they are not given.
        goes_on: What is written of what, and whether to go on where another run was stopped; only for folders of this machine.

    Raises:
        OutputError: The output exists, the disk is too small, or the system refuses to write.
        SourceError: A store refuses, or does not answer.
        RecipeError: A file output for tensors of sub-folders.
    """
    out = out if isinstance(out, RemotePath) else Path(out)
    files, folders = _writers(out)
    single = out.suffix == ".safetensors"
    check_protected(out, protect)
    alone = shards[0].head if len(shards) == 1 else b""
    check_output(out, folder=not single, force=force, unlisted=True, head=alone)
    tied = dict(aliases or {})
    if single:
        below = sorted({shard.prefix for shard in shards} - {""})
        if below:
            hint = "Name a folder, without .safetensors."
            raise RecipeError("one file cannot hold weights of sub-folders", path=out, found=", ".join(below), hint=hint)
        tensors = [(tensor.name, tensor.dtype, tensor.shape) for shard in shards for tensor in shard.tensors]
        whole = shards if alone else plan_shards(tensors)
        writer: FolderWriter | FileWriter = files(out, whole, (), tied, metadata, force, 0)
    else:
        beside = new_indices(shards) if indices is None else indices
        there = isinstance(out, RemotePath)
        writer = folders(out, shards, beside, tied, metadata, force, side_bytes, NEVER if there else goes_on)
    with writer:
        yield writer
