"""Distributed checkpoints of torch, made of the classes that torch itself pickles: any boxes, in any files."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

Extent = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Parts:
    """What `.metadata` will say, to be changed before it is written."""

    described: dict[Any, Any]
    planner: dict[Any, Any] | None
    stored: dict[Any, Any]

    def write(self, folder: Path) -> Path:
        metadata = Metadata(self.described, self.planner, self.stored)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        return folder


def save_alone(state: Mapping[str, Any], folder: Path) -> Path:
    """Save a state as the only process, which torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        save(dict(state), checkpoint_id=folder)
    return folder


def whole(tensor: torch.Tensor) -> list[Extent]:
    """The one box of a tensor that no rank has cut."""
    return [((0,) * tensor.ndim, tuple(tensor.shape))]


def parts_of(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    boxes: Mapping[str, Sequence[Extent]] | None = None,
    paths: Mapping[str, tuple[Any, ...]] | None = None,
    ranks: int = 2,
) -> Parts:
    """Write the `.distcp` files of a state dict, its boxes dealt out to `ranks`, and return what `.metadata` has to say."""
    folder.mkdir(exist_ok=True)
    files = [io.BytesIO() for _ in range(ranks)]
    described: dict[str, Any] = {"step": BytesStorageMetadata()}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    turn = 0
    for key, tensor in state.items():
        cut = (boxes or {}).get(key) or whole(tensor)
        chunks = [ChunkStorageMetadata(torch.Size(start), torch.Size(extent)) for start, extent in cut]
        described[key] = TensorStorageMetadata(TensorProperties.create_from_tensor(tensor), tensor.size(), chunks)
        for start, extent in cut:
            rank, turn = turn % ranks, turn + 1
            piece = tensor[tuple(slice(first, first + count) for first, count in zip(start, extent, strict=True))].clone()
            offset = files[rank].tell()
            torch.save(piece, files[rank])
            index = MetadataIndex(key, torch.Size(start))
            stored[index] = _StorageInfo(f"__{rank}_0.distcp", offset, files[rank].tell() - offset)
    for rank, file in enumerate(files):
        (folder / f"__{rank}_0.distcp").write_bytes(file.getvalue())
    planner = {key: (paths or {}).get(key, (key,)) for key in (*state, "step")}
    return Parts(described, planner, stored)
