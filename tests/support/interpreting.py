"""Without a GPU, Triton's kernels run in its interpreter; that is decided when they are first imported, so import this before."""

from __future__ import annotations

import importlib.util
import os

__all__ = ["DEVICE"]


def _device() -> str:
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


DEVICE = _device()
"""Where tests that need a device run."""

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
