"""Segments that are sent to a device in large pieces, while later ones are filled."""

from __future__ import annotations

import torch

from deltapack.device.segments import SEGMENT_BYTES, Segments
from deltapack.kernels.layout import Bytes

__all__ = ["Sender"]


class Sender:
    """Fills segments in pinned memory and sends full ones; on the CPU nothing is copied once more.

    Args:
        device: Where to.
        segment_bytes: Bytes of a piece.
    """

    def __init__(self, device: torch.device, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._device = device
        self._sent: list[torch.Tensor] = []
        self._pinned: list[torch.Tensor] = []
        self.segments = Segments(self._allocate, self._hand_over, segment_bytes)

    def finish(self) -> tuple[torch.Tensor, ...]:
        """Send what is left; return all segments, in order."""
        self.segments.flush()
        return tuple(self._sent)

    def _allocate(self, nbytes: int) -> Bytes:
        # The allocator of pinned memory gives a buffer out again only when the copy from it is done.
        self._pinned.append(torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda"))
        buffer: Bytes = self._pinned[-1].numpy()
        return buffer

    def _hand_over(self, _: Bytes, used: int) -> None:
        buffer = self._pinned.pop()[:used]
        self._sent.append(buffer if self._device.type == "cpu" else buffer.to(self._device, non_blocking=True))
