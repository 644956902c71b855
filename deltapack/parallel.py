"""Threads over tasks, results in order, a bounded number in flight.

Every heavy step (numba kernels, zstd, xxhash, file reads) releases the GIL, so threads are enough,
and because results come back in the order of the tasks, output never depends on the worker count.
Nor do these functions need the GIL: threads share queues, and lists that they only append to; iterators belong to the thread that called.

Ctrl-C may come at any moment. The conditions and semaphores of `threading`, on which `concurrent.futures` is built, are written in
Python: a signal that arrives just as one is taken leaves it taken, and other threads wait for it for ever. `SimpleQueue` and
`_thread` are written in C and have no such moment.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from deltapack.checking import as_count
from deltapack.errors import RecipeError

__all__ = ["batches", "for_each", "ordered_map", "resolve_workers"]

MOST_WORKERS = 1024
"""More threads than any machine has cores; a system refuses to start many more."""

T = TypeVar("T")
R = TypeVar("R")


def resolve_workers(workers: int | None) -> int:
    """Return the worker count to use: `workers`, or every core this process may run on.

    Raises:
        RecipeError: `workers` is no whole number, below 1, or more threads than a system starts.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if as_count("workers", workers) < 1:
        raise RecipeError("workers is out of range", expected="at least 1", found=workers)
    if workers > MOST_WORKERS:
        raise RecipeError("workers is out of range", expected=f"at most {MOST_WORKERS}", found=workers)
    return workers


def batches(tasks: Iterable[T], size: Callable[[T], int], least: int, most: int = 256) -> Iterator[list[T]]:
    """Join tasks until their sizes add up to `least`, or there are `most`: to hand over a short one costs more than to do it.

    >>> list(batches([1, 1, 3, 9, 2], lambda task: task, 5))
    [[1, 1, 3], [9], [2]]
    """
    batch: list[T] = []
    total = 0
    for task in tasks:
        batch.append(task)
        total += size(task)
        if total >= least or len(batch) == most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def ordered_map(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Yield `function(task)` for each task, in task order, with `workers` threads, or as many as there are tasks or the system starts.

    At most `workers + 2` results exist at a time, so memory is bounded however long `tasks` is.
    An exception in a task is raised at its place in the order; tasks not yet started never start.
    No task runs any more when the generator has ended or was closed.
    """
    if workers == 1:
        for task in tasks:  # `map` would take a StopIteration of the function for its end
            yield function(task)
        return
    todo: SimpleQueue[Any] = SimpleQueue()
    done: SimpleQueue[Any] = SimpleQueue()
    early: dict[int, Any] = {}
    begun, ended = list[None](), list[None]()
    sent = taken = 0
    try:
        try:
            started, most = 0, workers
            for task in tasks:
                if started < most and started == sent - taken:  # each thread may have a task
                    if _start(1, _work, (function, todo, done, begun, ended)):
                        started += 1
                    else:
                        most = started
                if not started:
                    yield function(task)
                    continue
                todo.put((sent, task))
                sent += 1
                if sent - taken > workers + 1:
                    yield _take(taken, done, early)
                    taken += 1
            while taken < sent:
                yield _take(taken, done, early)
                taken += 1
        finally:
            _stop(workers, todo, done, begun, ended)
    finally:  # again, for an interrupt that came before the first line of `_stop`
        _stop(workers, todo, done, begun, ended)


def for_each(function: Callable[[T], object], tasks: Sequence[T], workers: int) -> None:
    """Call `function` for each task with `workers` threads, this one among them; for tasks that are too short to be handed over one by one.

    There are fewer threads where the system starts no more.

    An exception ends the rest and is raised; of several, the one that came first. No task runs any more when this returns.
    """
    todo: SimpleQueue[Any] = SimpleQueue()
    awake: SimpleQueue[Any] = SimpleQueue()
    errors, begun, ended = list[BaseException](), list[None](), list[None]()
    for task in tasks:  # before there are threads: an iterator that several of them share may hand out an item twice without a GIL
        todo.put(task)

    def work() -> None:
        try:
            while not errors:
                try:
                    task = todo.get_nowait()
                except Empty:
                    return
                function(task)
        except BaseException as error:  # raised again below
            errors.append(error)

    def helper() -> None:
        begun.append(None)
        work()
        ended.append(None)
        awake.put(None)

    try:
        try:
            _start(min(workers, len(tasks)) - 1, helper, ())
            work()
        finally:
            _stop(0, todo, awake, begun, ended)
    finally:  # as above
        _stop(0, todo, awake, begun, ended)
    if errors:
        raise errors[0]


def _start(count: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
    """Start threads, up to `count`; return how many the system has started: it may have a limit, or no memory for their stacks."""
    for number in range(count):
        try:
            _thread.start_new_thread(function, arguments)
        except RuntimeError:
            return number
    return count


def _work(function: Callable[[T], R], todo: SimpleQueue[Any], done: SimpleQueue[Any], begun: list[None], ended: list[None]) -> None:
    """Run tasks until told to stop; a result is (number, result, exception)."""
    begun.append(None)
    while (item := todo.get()) is not None:
        number, task = item
        try:
            result = function(task)
        except BaseException as error:  # raised again, in its place, by whoever asked for the results
            done.put((number, None, error))
        else:
            done.put((number, result, None))
            del result
        del item, task
    ended.append(None)
    done.put(None)


def _take(number: int, done: SimpleQueue[Any], early: dict[int, Any]) -> Any:
    """Wait for the result of this number; keep those that come before."""
    while number not in early:
        item = done.get()
        early[item[0]] = item
    _, result, error = early.pop(number)
    if error is not None:
        raise error
    return result


def _stop(sleepers: int, todo: SimpleQueue[Any], awake: SimpleQueue[Any], begun: list[None], ended: list[None]) -> None:
    """Drop what has not begun and wait for the rest, however often the user presses Ctrl-C.

    Threads say themselves that they have begun, before they take a task, and that they have ended: a count that the starting thread keeps
    is wrong after an interrupt between a start and the next line. One that begins later than this finds nothing to do.

    Args:
        sleepers: How many threads may wait for a task.
        todo: What has not begun.
        awake: Gets an item from a thread after it has ended.
        begun: As long as the number of threads that have begun.
        ended: As long as the number of those that have ended.
    """
    interrupt = None
    while True:
        try:
            with suppress(Empty):
                while True:
                    todo.get_nowait()
            for _ in range(sleepers):
                todo.put(None)
            while len(ended) < len(begun):
                awake.get()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
