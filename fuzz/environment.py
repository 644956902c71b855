"""What must be set before numba, torch or Triton are imported."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE", "prepare"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltapack-fuzz"
"""Where inputs, findings and compiled loops are kept unless told otherwise."""


def prepare(bounds: bool = True) -> None:
    """Let compiled loops check every address that they compute, in a cache of their own, and Triton's kernels run in its interpreter.

    Args:
        bounds: Whether loops check.
    """
    if bounds:
        os.environ["NUMBA_BOUNDSCHECK"] = "1"
        os.environ["NUMBA_CACHE_DIR"] = str(CACHE / "loops")
    os.environ["DELTAPACK_LOOPS"] = "numba"
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
