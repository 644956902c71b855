"""Tensors that are restored bit for bit, in the memory of a device: what engines decode them from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltapack.device.exact_ready import ReadyExact
from deltapack.device.segments import Stream
from deltapack.errors import FormatError

__all__ = ["ResidentExact", "wrong_end"]


@dataclass(frozen=True)
class ResidentExact:
    """A tensor whose chunks lie in the memory of a device; see `deltapack.device.exact_ready.ReadyExact`.

    Attributes:
        ready: What was sent.
        segments: Where its streams lie, `[n] uint8` each.
    """

    ready: ReadyExact
    segments: tuple[torch.Tensor, ...]

    def view(self, stream: Stream, dtype: torch.dtype) -> torch.Tensor:
        """Return a stream as a view of the numbers that it is of, `[n]`."""
        if not stream.nbytes:
            return torch.zeros(0, dtype=dtype, device=self.segments[0].device if self.segments else None)
        return self.segments[stream.segment][stream.offset : stream.offset + stream.nbytes].view(dtype)

    def address(self, stream: Stream) -> int:
        """Return the address of a stream; 0 where there is none."""
        return self.segments[stream.segment].data_ptr() + stream.offset if stream.nbytes else 0


def wrong_end(ready: ReadyExact) -> FormatError:
    """Return the error for coded symbols or raw bits that do not end where their tile does."""
    return FormatError(
        "exact chunk: coded symbols or raw bits do not end where they should",
        path=ready.path,
        tensor=ready.name,
        rule="R9",
        hint="The pack is damaged, or the tensor is not the base's.",
    )
