"""Which backend serves."""

from __future__ import annotations

import sys

import pytest
from support.backends import load

from deltapack.kernels import active, reference


def test_without_numba_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    active.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("deltapack.kernels.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("deltapack.kernels.cpu", raising=False)
    try:
        with pytest.warns(RuntimeWarning, match="numba cannot be imported"):
            assert active() is reference
    finally:
        active.cache_clear()


def test_with_numba_the_compiled_loops_serve() -> None:
    assert active() is load("cpu")
