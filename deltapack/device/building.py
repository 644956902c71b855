"""Bounds for models that transformers builds: what config.json asks for may come from anyone, and be without end."""

from __future__ import annotations

import errno
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from deltapack.errors import LimitError
from deltapack.sources.whole import read_small

__all__ = ["bounded_building", "check_sizes", "read_sizes"]

_COUNTED = re.compile(r"layer|block|depth|stage|label|group")
"""Numbers of what transformers lists in Python, one by one, before it makes any module."""
_MOST_COUNTED, _MOST = 1 << 20, 1 << 24
"""Above all of real models: contexts have up to ten million tokens."""
_MOST_BYTES = 1 << 24
_PER_TENSOR, _BESIDE = 8, 1000
"""Modules that hold no tensor, such as dropouts and containers, are a few for each that does."""


def check_sizes(config: object) -> None:
    """Refuse a config with numbers that no model has.

    Args:
        config: What config.json says; a part of it is checked likewise.

    Raises:
        LimitError: There is one.
    """
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        name, value = waiting.pop()
        most = _MOST_COUNTED if _COUNTED.search(name) else _MOST
        if isinstance(value, Mapping):
            waiting += ((str(key), part) for key, part in value.items())
        elif isinstance(value, list):
            waiting += ((name, part) for part in value)
        elif isinstance(value, int) and value > most:
            found = f"{name[:60]} {value}" if value < 1 << 64 else f"{name[:60]} above 2^64"
            raise LimitError("config.json asks for a model larger than any", expected=f"at most {most}", found=found)


def read_sizes(folder: Path) -> object:
    """Return what config.json of a folder says, for `check_sizes`; nothing where it cannot be read, which transformers will say.

    Raises:
        LimitError: It is longer than any, and would take more memory than its model.
    """
    try:
        return json.loads(read_small(folder / "config.json", _MOST_BYTES))
    except OSError as error:
        if error.errno != errno.EFBIG:
            return {}
        raise LimitError("config.json is too long", path=folder, expected=f"at most {_MOST_BYTES:,} bytes") from error
    except (ValueError, RecursionError):
        return {}


@contextmanager
def bounded_building(tensors: int) -> Iterator[None]:
    """Refuse, inside of the block and in this thread, a model of many more modules than there are tensors for.

    Args:
        tensors: Number of tensors of the checkpoint.

    Raises:
        LimitError: It has more.
    """
    most, made, here = _PER_TENSOR * tensors + _BESIDE, 0, threading.get_ident()

    def count(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal made
        made += threading.get_ident() == here
        if made > most:
            raise LimitError("config.json asks for more modules than there are tensors for", expected=f"at most {most}", found="more")

    # Called for each module that becomes part of another one.
    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
