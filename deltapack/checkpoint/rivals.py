"""A folder with two sets of weights, one file and the shards of an index: which of them is the model?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.locate import Location
from deltapack.checkpoint.tensors import TensorInfo
from deltapack.errors import RecipeError

__all__ = ["check_chosen", "check_rival", "first_difference"]

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
    path: Path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors by name."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """From second names of tied tensors to the names in `tensors`."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.generic]:
        """Return elements of a tensor."""


def check_rival(checkpoint: _Weights, place: Location, other: _Weights, rival: Location) -> None:
    """Require that shards beside a file hold the same tensors.

    Raises:
        RecipeError: They do not: somebody has to choose.
    """
    own = {name: info for name, info in checkpoint.tensors.items() if info.shard == place.files[0]}
    name = first_difference(own, checkpoint, other)
    if name is not None:
        raise RecipeError(
            "the folder holds two models: a file, and shards that differ from it",
            path=checkpoint.path,
            tensor=name,
            expected=f"the same in {place.files[0]} and in the shards of {rival.index} ({', '.join(rival.files[:2])})",
            found=_both(own.get(checkpoint.aliases.get(name, name)), other.tensors.get(other.aliases.get(name, name))),
            hint="Delete one of them, or choose: --weights single reads the file, --weights index the shards (weight_files= in Python).",
        )


def _both(one: TensorInfo | None, other: TensorInfo | None) -> str:
    if one is None or other is None:
        return f"it only in {'the shards' if one is None else 'the file'}"
    kinds = [f"{info.dtype} {list(info.shape)}" for info in (one, other)]
    return "other elements" if kinds[0] == kinds[1] else " and ".join(kinds)


def first_difference(own: Mapping[str, TensorInfo], one: _Weights, other: _Weights) -> str | None:
    """Return the first tensor that two sets of weights do not share, or not with the same type, shape and bytes; none where there is none.

    Args:
        own: The tensors of `one` to compare.
        one: The one set.
        other: The other, all of which is compared.

    A tied tensor may be a tensor of its own in the other set, of the same bytes, or have no second name there: the model is the same.
    Headers come first, then the first elements of each tensor, for weights that differ mostly do so at once; then all.
    """
    mine = {**own, **{name: own[kept] for name, kept in one.aliases.items() if kept in own}}
    its = {**other.tensors, **{name: other.tensors[kept] for name, kept in other.aliases.items()}}
    names = sorted(own.keys() | other.tensors.keys() | (mine.keys() & its.keys()))
    for name in names:
        ours, theirs = mine.get(name), its.get(name)
        if ours is None or theirs is None or (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return name
    for first in (True, False):
        for name in names:
            info = mine[name]
            for start in range(0, min(1, info.numel) if first else info.numel, _STEP):
                stop = min(start + (1024 if first else _STEP), info.numel)
                if one.read(name, start, stop).tobytes() != other.read(name, start, stop).tobytes():
                    return name
    return None
