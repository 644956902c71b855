"""Where work runs that can be spread: by threads of this process, or by an engine, such as a cluster, that a call was given.

An engine runs functions in other processes, maybe on other machines, so what it is given has to be pickled. Results come back in the
order of the tasks either way, so the output is the same to the bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from deltapack.parallel import batches, ordered_map

__all__ = ["Engine", "active", "spread_map", "with_engine"]

T = TypeVar("T")
R = TypeVar("R")


class Engine(Protocol):
    """What runs tasks elsewhere.

    Attributes:
        task_elements: How many elements of tensors a task reads, about: it costs more to send than a task of a thread.
    """

    task_elements: int

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R, None, None]:
        """Yield `function(task)` for each task, in task order, with a bounded number in flight.

        An exception in a task is raised at its place in the order, as it is. No task runs any more when the generator has ended or was
        closed. A task may run more than once, where a machine was lost.
        """
        ...


_ACTIVE: ContextVar[Engine | None] = ContextVar("deltapack_engine", default=None)
"""Threads begin without one: what a task spreads is spread over threads."""


def active() -> Engine | None:
    """Return the engine of the call in hand; none where threads do the work."""
    return _ACTIVE.get()


@contextmanager
def with_engine(engine: Engine | None) -> Iterator[None]:
    """Spread what is spread inside the block with an engine."""
    token = _ACTIVE.set(engine)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def spread_map(
    function: Callable[[T], R], tasks: Iterable[T], workers: int, *, size: Callable[[T], int], least: int = 0
) -> Generator[tuple[T, R], None, None]:
    """Yield each task and `function(task)`, in task order: from threads, or from the engine of the call in hand.

    Tasks must not change anything that the caller sees but by what they return.

    Args:
        function: What is done; pickled where there is an engine.
        tasks: What it is done with, likewise.
        workers: Threads, where there is no engine.
        size: About how many elements a task reads.
        least: Elements up to which tasks are handed to a thread together.

    >>> list(spread_map(abs, [-1, 2], 2, size=lambda task: 1))
    [(-1, 1), (2, 2)]
    """
    engine, sent = active(), deque[list[T]]()

    def joined() -> Iterator[list[T]]:
        for batch in batches(tasks, size, least if engine is None else engine.task_elements):
            sent.append(batch)
            yield batch

    each = _Each(function)
    with closing(ordered_map(each, joined(), workers) if engine is None else engine.map(each, joined())) as results:
        for done in results:
            yield from zip(sent.popleft(), done, strict=True)


@dataclass(frozen=True)
class _Each(Generic[T]):
    """Does each task of a batch."""

    function: Callable[[T], Any]

    def __call__(self, batch: list[T]) -> list[Any]:
        return [self.function(task) for task in batch]
