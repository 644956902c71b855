"""A folder with two sets of weights, one file and the shards of an index: which of them is the model?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.tensors import TensorInfo
from deltapack.errors import RecipeError

__all__ = ["check_chosen", "first_difference"]

_STEP = 1 << 22


class _Chosen(Protocol):
    path: Path
    chosen: bool


def check_chosen(choice: str | None, *checkpoints: _Chosen) -> None:
    """Refuse a choice of weights that decided nothing in any of these checkpoints.

    Raises:
        RecipeError: There was nothing to choose.
    """
    if choice is None or any(checkpoint.chosen for checkpoint in checkpoints):
        return
    raise RecipeError(
        f"weights {choice!r} were asked for, and there is nothing to choose",
        path=checkpoints[0].path,
        expected="a folder with one file of weights and an index of shards beside it",
        found=f"no such folder in {' or '.join(str(checkpoint.path) for checkpoint in checkpoints)}",
        hint="Leave out --weights (weight_files= in Python).",
    )


class _Weights(Protocol):
    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors by name."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.generic]:
        """Return elements of a tensor."""


def first_difference(own: Mapping[str, TensorInfo], one: _Weights, other: _Weights) -> str | None:
    """Return the first tensor that two sets of weights do not share, or not with the same type, shape and bytes; none where there is none.

    Args:
        own: The tensors of `one` to compare.
        one: The one set.
        other: The other, all of which is compared.

    Headers come first, then the first elements of each tensor, for weights that differ mostly do so at once; then all.
    """
    for name in sorted(own.keys() | other.tensors.keys()):
        ours, theirs = own.get(name), other.tensors.get(name)
        if ours is None or theirs is None or (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return name
    for first in (True, False):
        for name, info in own.items():
            for start in range(0, min(1, info.numel) if first else info.numel, _STEP):
                stop = min(start + (1024 if first else _STEP), info.numel)
                if one.read(name, start, stop).tobytes() != other.read(name, start, stop).tobytes():
                    return name
    return None
