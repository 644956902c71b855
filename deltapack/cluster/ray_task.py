"""What runs in a worker process of Ray: one task of a function that was sent once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import ray

from deltapack._version import __version__
from deltapack.cluster.shipping import Opened, here
from deltapack.errors import BackendError

__all__ = ["run_task"]


class _Held:
    """The function that this process was sent last; a process does one task at a time."""

    key = ""
    function: Callable[[Any], Any] | None = None
    opened = Opened()


def run_task(version: str, key: str, functions: list[ray.ObjectRef[bytes]], task: bytes) -> bytes:
    """Do one task, which may be done again elsewhere if this process is lost: it writes the same bytes to the same place.

    Args:
        version: Version of deltapack that sent it.
        key: Tells functions apart.
        functions: Where the function is, in a list so that it is only fetched where it is not held yet.
        task: What it is given.

    Returns:
        Result and error, one of them none; an error comes back as it was raised, and not as one of Ray.
    """
    try:
        answer: tuple[Any, Exception | None] = (_done(version, key, functions, task), None)
    except Exception as error:  # every error is for the caller
        answer = None, error
    try:
        data = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        if answer[1] is not None:
            pickle.loads(data)  # some errors only come back as errors of their own
        return data
    except Exception as error:  # pickle has many of its own
        told = answer[1] if answer[1] is not None else error
        return pickle.dumps((None, RuntimeError(f"{here()}: {told!r}")), pickle.HIGHEST_PROTOCOL)


def _done(version: str, key: str, functions: list[ray.ObjectRef[bytes]], task: bytes) -> Any:
    if version != __version__:
        what = "a node of the cluster has another version of deltapack"
        raise BackendError(what, expected=version, found=f"{here()}: {__version__}", hint="Install the same everywhere.")
    if _Held.key != key:
        _Held.key, _Held.function = "", None
        _Held.opened.close()
        _Held.function = _Held.opened.value_of(ray.get(functions[0]))
        _Held.key = key
    assert _Held.function is not None
    result = _Held.function(_Held.opened.value_of(task))
    _Held.opened.sync()
    return result
