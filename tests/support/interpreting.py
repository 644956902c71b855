"""Without a GPU, Triton's kernels run in its interpreter; that is decided when they are first imported, so import this before."""

from __future__ import annotations

import os

import torch

__all__ = ["DEVICE"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where tests that need a device run."""

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
