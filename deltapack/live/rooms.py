"""Memory of torch for restored tensors, and the sink that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deltapack.composing.tensor_job import TensorJob
from deltapack.device.regions import Region, write_chunk
from deltapack.errors import UnsupportedError
from deltapack.format.digest import CHUNK
from deltapack.kernels.layout import Elements

__all__ = ["TensorSink", "room_for", "unheard"]


@dataclass(frozen=True)
class TensorSink:
    """A sink that writes to tensors in memory; see `deltapack.restoring.engine.Sink`."""

    regions: Mapping[str, Region]

    def write(self, job: TensorJob, start: int, elements: Elements) -> None:
        """Write elements."""
        write_chunk(self.regions[job.name], start // CHUNK, elements)

    def copy(self, job: TensorJob, start: int, count: int) -> bool:
        """There is no shorter way."""
        return False

    def region(self, job: TensorJob) -> Region:
        """Return the memory of a tensor."""
        return self.regions[job.name]


def room_for(job: TensorJob, device: torch.device) -> torch.Tensor:
    """Return memory for a tensor.

    Raises:
        UnsupportedError: torch has no such type.
    """
    dtype = getattr(torch, job.dtype.torch, None) if job.dtype.torch else None
    if dtype is None:
        hint = "Use deltapack.apply: in a checkpoint it travels as bytes."
        raise UnsupportedError("this torch has no such element type", tensor=job.name, found=job.dtype.safetensors, hint=hint)
    return torch.empty(job.dtype.torch_shape(job.shape), dtype=dtype, device=device)


def unheard(done: int, total: int) -> None:
    """Progress that nobody asked for."""
