"""Byte planes: the same byte of every element together, which compresses better (spec/02-container.md section 2.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["join_planes", "split_planes"]


def split_planes(elements: NDArray[np.generic]) -> bytes:
    """Return the byte planes of little-endian elements `[n]`, least significant plane first."""
    width = elements.dtype.itemsize
    if width == 1:
        return elements.tobytes()
    return elements.view(np.uint8).reshape(-1, width).T.tobytes()


def join_planes(raw: bytes | NDArray[np.uint8], storage: str) -> NDArray[np.generic]:
    """Invert `split_planes`; `storage` is the numpy dtype string of an element."""
    width = np.dtype(storage).itemsize
    planes = np.frombuffer(raw, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(storage)
