"""Triton's kernels in its interpreter, which is here made to check every address: a GPU would read or write what lies beside a buffer."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from typing import Any

import numpy as np

from fuzz.protocol import Finding

__all__ = ["OutOfBounds", "check_addresses"]


class OutOfBounds(Finding):
    """A kernel touched memory that belongs to no tensor."""


class _Checked:
    """Stands in for the interpreter's access to memory.

    Kernels work on addresses that stand in tables, so that what they may touch is all memory of any tensor that lives when they begin.
    Memory beside a tensor is never another's: allocations are not contiguous.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._starts = self._ends = np.zeros(0, np.uint64)

    def look(self) -> None:
        """Note what memory tensors have now."""
        import torch

        spans = set()
        for found in gc.get_objects():
            if issubclass(type(found), torch.Tensor) and found.device.type == "cpu" and found.layout is torch.strided:
                storage = found.untyped_storage()
                with contextlib.suppress(RuntimeError):  # one that is only traced has no memory
                    spans.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        ordered = sorted(span for span in spans if span[0])
        self._starts = np.array([start for start, _ in ordered], np.uint64)
        self._ends = np.maximum.accumulate(np.array([end for _, end in ordered], np.uint64))

    def _check(self, pointers: Any, mask: Any, itemsize: int, what: str) -> None:
        own = np.asarray(pointers).astype(np.uint64).reshape(-1)
        own = own[np.broadcast_to(np.asarray(mask, bool), np.asarray(pointers).shape).reshape(-1)]
        if not len(own):
            return
        at = np.searchsorted(self._starts, own, side="right")
        inside = (
            (at > 0) & (own + np.uint64(itemsize) <= self._ends[np.maximum(at, 1) - 1]) if len(self._starts) else np.zeros(len(own), bool)
        )
        if not inside.all():
            raise OutOfBounds(f"a kernel {what} {(~inside).sum()} elements outside of every tensor")

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        """Read elements."""
        self._check(pointers, mask, np.dtype(dtype).itemsize, "reads")
        return self._inner.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        """Write elements."""
        self._check(pointers, mask, np.asarray(value).dtype.itemsize, "writes")
        return self._inner.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        """Change elements."""
        self._check(pointers, mask, np.asarray(value).dtype.itemsize, "changes")
        return self._inner.atomic_rmw(operation, pointers, value, mask, order)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def check_addresses() -> bool:
    """Let every kernel that the interpreter runs from now on be checked; whether there is one."""
    if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from triton.runtime import interpreter

    if isinstance(interpreter._interpreter, _Checked):
        return True
    checked = _Checked(interpreter._interpreter)
    interpreter._interpreter = checked
    launch = interpreter.GridExecutor.__call__

    def look_and_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        checked.look()
        return launch(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = look_and_launch
    return True
