"""Which backend computes: numba's loops, or numpy's where there is little to compute.

To import numba and to load compiled loops takes half a second, in which numpy does a few million weights; the bits are the same.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, cast

from deltapack.errors import BackendError
from deltapack.forks import forking_lock
from deltapack.kernels import reference
from deltapack.kernels.backend import Backend
from deltapack.kernels.telling import LoopsWarning

__all__ = ["LITTLE", "LOOPS", "active", "asked", "fastest", "kept_in", "working_on"]

LITTLE = 1 << 20
"""Elements of a process for which numba does not pay; `python -m benchmarks.overhead` measures from where on it does."""
LOOPS = "DELTAPACK_LOOPS"
"""The environment variable that decides, with its values."""
_VALUES = ("auto", "numba", "numpy")
_works: list[int] = []
"""Elements of the pieces of work that are under way."""
_past = [0]
"""Elements of those that began in this process."""
_loading = forking_lock()


class Counted(Protocol):
    """What has a number of elements."""

    @property
    def numel(self) -> int:
        """Number of elements."""


def active() -> Backend:
    """Return the backend to compute with.

    It is the fastest one, `cpu`; or `reference`, which starts at once, as long as a piece of work is under way, all of this process add up
    to `LITTLE` elements at most, and numba's loops were not asked for before. `DELTAPACK_LOOPS` decides otherwise.

    Raises:
        BackendError: `DELTAPACK_LOOPS` has another value than `auto`, `numba` or `numpy`.
    """
    choice = asked()
    little = bool(_works) and _past[0] <= LITTLE and not _loaded.cache_info().currsize
    return _backend(reference) if choice == "numpy" or (choice == "auto" and little) else fastest()


@contextmanager
def working_on(tensors: Iterable[Counted], times: int = 1) -> Iterator[None]:
    """Say how much there is to compute in this context, which all threads share; outside of one it is taken to be much.

    Args:
        tensors: All that work is done on.
        times: How often, such as the number of packs that are added.
    """
    elements = sum(tensor.numel for tensor in tensors) * times
    _past[0] += elements
    _works.append(elements)
    try:
        yield
    finally:
        _works.remove(elements)


def asked() -> str:
    """Return what `DELTAPACK_LOOPS` asks for: `auto` unless it is set.

    Raises:
        BackendError: It has another value than `auto`, `numba` or `numpy`.
    """
    value = os.environ.get(LOOPS) or "auto"
    if value not in _VALUES:
        raise BackendError(f"{LOOPS} has a value that means nothing", expected=", ".join(_VALUES), found=value)
    return value


def fastest() -> Backend:
    """Return the fastest backend that this machine has: `cpu`, or `reference` without numba, with one warning in a process."""
    if _loaded.cache_info().currsize:
        return _loaded()
    with _loading:  # a thread that waits for the import of another, which fails, is given another reason than numba's
        return _loaded()


@cache
def _loaded() -> Backend:
    try:
        from deltapack.kernels import cpu
    except Exception as error:  # a numba that is broken, or does not fit numpy or Python, may raise anything
        why = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        what = f"numba cannot be imported ({why}): the same results, several times slower"
        warnings.warn(what, LoopsWarning, stacklevel=4)
        return _backend(reference)
    return _backend(cpu)


def kept_in() -> str | None:
    """Return the folder that compiled loops are kept in, for who has seen that numba's serve; none where none can be written."""
    home = import_module("deltapack.kernels.cpu.keeping").home_of_loops()
    return None if home is None else str(home)


def _backend(module: ModuleType) -> Backend:
    return cast(Any, module)  # type: ignore[no-any-return]
