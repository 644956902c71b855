"""Which weight files a result is written to: those of the fine-tune, byte for byte, or files that are laid out as the base's are."""

from __future__ import annotations

from pathlib import Path

from deltapack.checkpoint import Checkpoint, Shard, plan_shards
from deltapack.composing.basecheck import look_for_another_base
from deltapack.composing.compose import Composition
from deltapack.composing.containers import WeightFiles, restored_files
from deltapack.composing.tensor_job import FromBase
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType
from deltapack.errors import BaseMismatchError
from deltapack.format.blobs import EXACT
from deltapack.format.containers import restored_weight_files

__all__ = ["files_like_base", "finetuned_files"]

_NO_HEADERS = (
    "the tensors are those of the fine-tune bit for bit; the weight files are not byte for byte, as the pack has no headers of them, "
    "such as where they were no safetensors files"
)


def finetuned_files(
    base: Checkpoint, pack: WeightedPack, out: Path, *, dtype: DType | None, shard_bytes: int | None
) -> tuple[WeightFiles | None, list[str]]:
    """Return the weight files of the fine-tune where the pack knows them and they are what is asked for; and what to tell else.

    Args:
        base: The base of the pack.
        pack: The pack and how it is applied.
        out: The output.
        dtype: Type that the tensors are cast to, if one is asked for.
        shard_bytes: Size of a shard, if one is asked for.

    Raises:
        BaseMismatchError: A head that the pack leaves to the base, or refers to, is not there or another one; said is that it is not the
            base at all, where that can be told from some tensors.
        FormatError: A head is damaged, or does not fit the tensors.
    """
    index = pack.reader.index
    containers = index.containers
    if not containers:
        is_exact = EXACT in index.required and index.is_exact
        same = is_exact and pack.is_plain and dtype is None
        return None, [_NO_HEADERS] if same else []
    reasons = {
        "another weight or rescale is asked for": not pack.is_plain,
        "another dtype is asked for": dtype is not None,
        "shards of another size are asked for": shard_bytes is not None,
        "the output is one file": out.suffix == ".safetensors" and restored_weight_files(containers) > 1,
    }
    why = next((text for text, holds in reasons.items() if holds), None)
    if why is not None:
        return None, [f"the weight files are not byte for byte those of the fine-tune, which the pack could restore: {why}"]
    try:
        return restored_files(pack.reader, base), []
    except BaseMismatchError:
        look_for_another_base(base, pack.reader)
        raise


def files_like_base(base: Checkpoint, composition: Composition, shard_bytes: int | None) -> list[Shard]:
    """Return weight files for a result that are laid out as the base's, or filled up to a size."""
    jobs = composition.jobs
    return plan_shards(
        [(job.name, job.dtype, job.shape) for job in jobs],
        like=base.weight_shards(),
        rename={job.name: base.home_of(job.source.base.name) for job in jobs if isinstance(job.source, FromBase)},
        max_shard_size=shard_bytes,
        folders=composition.folders,
    )
