"""The backends, one after the other, and what tells their bits apart."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltapack.kernels import Backend

BACKENDS = ["reference", "cpu"]


def load(name: str) -> Backend:
    if name == "cpu":
        pytest.importorskip("numba")
    module: Any = importlib.import_module(f"deltapack.kernels.{name}")
    found: Backend = module
    return found


def unsigned(elements: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(elements).view(f"<u{elements.dtype.itemsize}")
