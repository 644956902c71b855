"""Fill memory that nobody has written yet with what cannot be right, so that results that depend on it are wrong every time.

Fresh memory is mostly zeros and used memory holds the same call's last result: an element that a loop forgets to write looks right. With
this, buffers that are used again are NaN and huge positions at each `take`, and `torch.empty` is NaN on every device. In the tests of loops
what the C library hands out for anything else (`np.empty`, in compiled code, too) is a byte that makes large numbers; elsewhere that would
cost a tenth of the time.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltapack.kernels.buffers import Buffers

if TYPE_CHECKING:
    import torch

__all__ = ["FRESH", "MALLOPT", "malloc_poisoned", "poisoned"]

FRESH = 0x7F
"""Each byte of what `np.empty` returns: f16 and f8 NaN, bf16 and f32 3.4e38, unsigned integers that are no position in a tile."""

MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None)
"""What fills it; only glibc has this."""

_M_PERTURB = -6  # of its malloc.h: malloc fills with the complement of this byte, free with the byte; 0 fills nothing


@contextmanager
def poisoned() -> Iterator[None]:
    """Poison buffers and tensors until the end of the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Buffers, "take", _poisoning(Buffers.take))
        if importlib.util.find_spec("torch") is not None:
            import torch

            patch.setattr(torch, "empty", _nan(torch.empty))
        yield


@contextmanager
def malloc_poisoned() -> Iterator[None]:
    """Poison all that the C library hands out until the end of the context, where it can."""
    if MALLOPT is None:
        yield
        return
    MALLOPT(_M_PERTURB, FRESH ^ 0xFF)
    try:
        yield
    finally:
        MALLOPT(_M_PERTURB, 0)


def _poisoning(take: Any) -> Any:
    def take_poisoned(self: Buffers, name: str, dtype: str, size: int) -> NDArray[np.generic]:
        array: NDArray[np.generic] = take(self, name, dtype, size)
        array.view(np.uint8).fill(0xFF)
        return array

    return take_poisoned


def _nan(empty: Any) -> Any:
    def empty_poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        tensor: torch.Tensor = empty(*arguments, **options)
        if not tensor.is_meta:
            storage: Any = tensor.untyped_storage()
            storage.fill_(1 if str(tensor.dtype) == "torch.bool" else 0xFF)
        return tensor

    return empty_poisoned
