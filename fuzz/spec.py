"""The decoders of the specification, which are programs and no part of a package."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["ROOT", "exact_decoder", "reference_decoder"]

ROOT = Path(__file__).resolve().parent.parent


@cache
def reference_decoder() -> Any:
    """`spec/reference_decoder.py` as a module."""
    return _load("reference_decoder")


@cache
def exact_decoder() -> Any:
    """`spec/exact_decoder.py` as a module; its refusals are of the class `Invalid` of the other."""
    return reference_decoder().exact_decoder()


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "spec" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
