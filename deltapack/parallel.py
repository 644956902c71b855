"""Threads over tasks, results in order, a bounded number in flight.

Every heavy step (numba kernels, zstd, xxhash, file reads) releases the GIL, so threads are enough,
and because results come back in the order of the tasks, output never depends on the worker count.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from deltapack.errors import RecipeError

__all__ = ["ordered_map", "resolve_workers"]

T = TypeVar("T")
R = TypeVar("R")


def resolve_workers(workers: int | None) -> int:
    """Return the worker count to use: `workers`, or every core this process may run on.

    Raises:
        RecipeError: `workers` is below 1.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise RecipeError("workers is out of range", expected="at least 1", found=workers)
    return workers


def ordered_map(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Yield `function(task)` for each task, in task order, with `workers` threads.

    At most `workers + 2` results exist at a time, so memory is bounded however long `tasks` is.
    An exception in a task is raised at its place in the order; tasks not yet started never start.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="deltapack") as pool:
        try:
            for task in tasks:
                pending.append(pool.submit(function, task))
                if len(pending) > workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
