"""Names that are nearly a name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from deltapack.checkpoint.tensors import TensorInfo

__all__ = ["nearest_names"]

_COMPARED = 2000


def nearest_names(name: str, info: TensorInfo, among: Mapping[str, TensorInfo], count: int = 3) -> tuple[str, ...]:
    """Return the most similar names of tensors whose shape fits."""
    fitting = [other for other, tensor in among.items() if tensor.shape[1:] == info.shape[1:]][:_COMPARED]
    return tuple(difflib.get_close_matches(name, fitting, count, 0.0))
