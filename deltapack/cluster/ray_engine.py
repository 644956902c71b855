"""The engine that runs tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from deltapack._version import __version__
from deltapack.cluster.connected import ADDRESS, check_connected
from deltapack.cluster.shipping import shipped
from deltapack.errors import BackendError, RecipeError

__all__ = ["RayEngine"]

_TASK_ELEMENTS = 64 << 20
"""128 MB of bf16: some hundred milliseconds of work, against a few that it takes to send it."""
_RETRIES = 5
"""How often a task is begun again whose process or machine was lost."""
_AHEAD = 2
"""Tasks in flight for each core of the cluster: one that runs, and one that waits for it to end."""
_PATIENCE = 5.0
"""Seconds for tasks that were cancelled to end by themselves; then their processes are ended."""
_ANSWER = 10.0
"""Seconds for the machine of a cluster to answer."""

T = TypeVar("T")
R = TypeVar("R")


class RayEngine:
    """Runs tasks on a Ray cluster, a core each; a context manager, whose end leaves the cluster as it was.

    Where the program is connected to Ray already, that connection is used and stays; an address of another cluster is refused.

    Args:
        address: `"auto"`, `"ray://host:port"` or `"host:port"`. Unless given, that of the environment variable `RAY_ADDRESS`, and without
            one a cluster is started on this machine, and stopped.
        task_elements: About how many elements of tensors a task reads.

    Raises:
        RecipeError: The address is no text.
    """

    def __init__(self, address: str | None = None, *, task_elements: int = _TASK_ELEMENTS) -> None:
        if address is not None and (not isinstance(address, str) or not address):
            raise RecipeError(
                "address is no address of a Ray cluster", expected="such as auto or ray://host:10001", found=repr(address)[:60]
            )
        self.address = address
        self.task_elements = task_elements
        self._own = False

    def __enter__(self) -> RayEngine:
        """Connect.

        Raises:
            BackendError: Ray is not installed, or the cluster cannot be reached.
            RecipeError: The program is connected to another cluster than the one at the address.
        """
        ray = _ray()
        if ray.is_initialized():
            check_connected(ray, self.address)
        else:
            self._connect(ray)
            self._own = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._own:
            self._own = False
            _ray().shutdown()

    def _connect(self, ray: Any) -> None:
        where = self.address or os.environ.get("RAY_ADDRESS") or "local"
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            _reach(where)
            ray.init(address=where, **quiet, **({"include_dashboard": False} if where == "local" else {}))
        except Exception as error:  # of many kinds
            found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            hint = "Is it running there (`ray status`), and with the same versions of Ray and Python?"
            raise BackendError("cannot connect to the Ray cluster", expected=f"one at {where}", found=found, hint=hint) from error

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R, None, None]:
        """Yield `function(task)` for each task, in task order; see `deltapack.engines.Engine`.

        Raises:
            BackendError: A task was lost too often, or a node lacks what it takes.
        """
        ray = _ray()
        from deltapack.cluster.ray_task import run_task

        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(run_task)
        key, sent = uuid.uuid4().hex, [ray.put(shipped(function, ray.cloudpickle.Pickler))]
        waiting = deque[Any]()
        try:
            most = _in_flight(ray)
            for task in tasks:
                waiting.append(remote.remote(__version__, key, sent, shipped(task, ray.cloudpickle.Pickler)))
                if len(waiting) >= most:
                    yield _take(ray, waiting)
                    most = _in_flight(ray)  # nodes come and go
            while waiting:
                yield _take(ray, waiting)
        finally:
            _cancel(ray, list(waiting))


def _in_flight(ray: Any) -> int:
    """Return how many tasks may be in flight."""
    return max(2, _AHEAD * int(ray.cluster_resources().get("CPU", 1)))


def _take(ray: Any, waiting: deque[Any]) -> Any:
    """Wait for the first task and return its result, or raise its error."""
    try:
        answer = ray.get(waiting[0])
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        found = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        hint = "Every node needs deltapack, memory for a process on each core, and the files under the same paths."
        raise BackendError("the Ray cluster could not do a task", found=found, hint=hint) from error
    waiting.popleft()
    result, failure = pickle.loads(answer)
    if failure is not None:
        raise failure
    return result


def _cancel(ray: Any, tasks: list[Any]) -> None:
    """Cancel tasks and wait until none runs: what they write to is about to go. Ctrl-C once more does not cut it short."""
    interrupt = None
    for force, patience in ((False, _PATIENCE), (True, None)):
        while tasks:
            try:
                for task in tasks:
                    with suppress(ray.exceptions.RayError, ValueError):
                        ray.cancel(task, force=force)
                _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=patience)
                break
            except KeyboardInterrupt as error:
                interrupt = error
            except ray.exceptions.RayError:  # the cluster is gone
                tasks = []
    if interrupt is not None:
        raise interrupt


def _reach(where: str) -> None:
    """Ask whether anyone listens there: Ray itself asks for minutes, and writes meanwhile.

    Raises:
        OSError: Nobody does.
    """
    found = ADDRESS.fullmatch(where)
    if found is not None:
        socket.create_connection((found[2], min(int(found[3]), 65535)), timeout=_ANSWER).close()


def _ray() -> Any:
    """Import Ray, which only this engine needs.

    Raises:
        BackendError: It is not there.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of what will change
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or a cluster that is started here tells its makers
    try:
        import ray
    except ImportError as error:
        hint = "pip install 'deltapack[ray]', or leave --engine out."
        raise BackendError("the engine ray needs Ray", found=str(error), hint=hint) from error
    return ray
