"""Threads: order, a bound on what is in flight, and errors in their place."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty

import pytest

from deltapack.errors import RecipeError
from deltapack.parallel import batches, for_each, ordered_map, resolve_workers

WORKERS = [1, 2, 3, 8]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(workers: int, count: int) -> None:
    started = threading.Event()

    def task(number: int) -> int:
        if number == 0 and workers > 1 and count > 1:
            assert started.wait(10)  # the first result is ready last
        started.set()
        return number * number

    assert list(ordered_map(task, range(count), workers)) == [number * number for number in range(count)]


@pytest.mark.parametrize("workers", WORKERS)
def test_tasks_in_flight_are_bounded(workers: int) -> None:
    drawn = 0

    def tasks() -> Iterator[int]:
        nonlocal drawn
        for number in range(100):
            drawn += 1
            yield number

    for done, result in enumerate(ordered_map(lambda number: number, tasks(), workers)):
        assert result == done
        assert drawn - done <= workers + 2


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_is_raised_in_its_place_and_stops_the_rest(workers: int) -> None:
    ran = []

    def task(number: int) -> int:
        ran.append(number)
        if number == 5:
            raise KeyError(number)
        return number

    results = []
    with pytest.raises(KeyError):
        for result in ordered_map(task, range(1000), workers):
            results.append(result)
    assert results == [0, 1, 2, 3, 4]
    assert max(ran) <= 5 + workers + 2


@pytest.mark.parametrize("workers", WORKERS)
def test_a_consumer_that_leaves_stops_the_rest(workers: int) -> None:
    threads, began, ended = _thread._count(), list[int](), list[int]()

    def task(number: int) -> int:
        began.append(number)
        if number:
            time.sleep(0.01)
        ended.append(number)
        return number

    results = ordered_map(task, range(1000), workers)
    assert next(results) == 0
    results.close()
    assert sorted(ended) == sorted(began)  # what had begun is waited for
    assert max(began) <= workers + 2
    _wait_for_threads(threads)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("run", [for_each, lambda *arguments: list(ordered_map(*arguments))])
def test_as_many_tasks_as_workers_run_at_once(workers: int, run: Callable[..., object]) -> None:
    barrier = threading.Barrier(workers)
    run(lambda number: barrier.wait(10), range(workers), workers)  # raises if one of them has to wait for another's end


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_while_tasks_are_listed(workers: int) -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise RecipeError("stop")

    with pytest.raises(RecipeError, match="stop"):
        list(ordered_map(lambda number: number, tasks(), workers))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_every_task_is_done_once(workers: int, count: int) -> None:
    ran: list[int] = []
    for_each(ran.append, range(count), workers)
    assert sorted(ran) == list(range(count))


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_ends_the_rest(workers: int) -> None:
    ran: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        if number == 5:
            raise KeyError(number)
        if number > 5:
            time.sleep(0.001)

    with pytest.raises(KeyError):
        for_each(task, range(10_000), workers)
    count = len(ran)
    assert count < 5000
    time.sleep(0.01)
    assert len(ran) == count


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after every few instructions, which is the nearest to no GIL that an interpreter with one offers."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("workers", [2, 3, 8, 32])
def test_many_short_tasks_are_each_done_once(workers: int) -> None:
    for count in (1, 2, workers - 1, workers, workers + 1, 5000):
        ran: list[int] = []
        for_each(ran.append, range(count), workers)
        assert sorted(ran) == list(range(count))
        assert list(ordered_map(lambda number: -number, iter(range(count)), workers)) == [-number for number in range(count)]


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("error", [KeyError, Empty, StopIteration, KeyboardInterrupt, SystemExit])
def test_errors_of_any_kind_among_short_tasks(error: type[BaseException]) -> None:
    """Also those that queues and iterators use themselves."""
    for at in (0, 1, 7, 499):
        ran: list[int] = []

        def task(number: int, at: int = at, ran: list[int] = ran) -> None:
            ran.append(number)
            if number == at:
                raise error(number)

        threads = _thread._count()
        with pytest.raises(error) as raised:
            for_each(task, range(500), 8)
        assert raised.value.args == (at,)
        assert len(ran) == len(set(ran)) and {*range(at + 1)} <= {*ran}  # tasks are begun in order
        _wait_for_threads(threads)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_stop_iteration_does_not_pass_for_the_end(workers: int) -> None:
    def task(number: int) -> int:
        return next(iter([number] if number < 3 else []))

    results = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        for result in ordered_map(task, range(9), workers):
            results.append(result)
    assert results == [0, 1, 2]


@pytest.mark.usefixtures("restless")
def test_when_every_task_fails_one_error_is_raised() -> None:
    def task(number: int) -> None:
        raise KeyError(number)

    for _ in range(200):
        with pytest.raises(KeyError):
            for_each(task, range(8), 16)


@pytest.mark.usefixtures("restless")
def test_tasks_are_drawn_by_the_calling_thread_alone() -> None:
    """An iterator that several threads share may hand out an item twice where there is no GIL."""
    drew: set[int] = set()

    class Tasks(list[int]):
        def __iter__(self) -> Iterator[int]:
            for number in range(len(self)):
                drew.add(threading.get_ident())
                yield number

    ran: list[int] = []
    for_each(ran.append, Tasks(range(300)), 4)
    assert list(ordered_map(lambda number: number, Tasks(range(300)), 4)) == sorted(ran) == list(range(300))
    assert drew == {threading.get_ident()}


def _wait_for_threads(count: int) -> None:
    """Threads that have reported their end may not be gone yet."""
    deadline = time.monotonic() + 10
    while _thread._count() > count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert _thread._count() <= count


def test_ctrl_c_while_helpers_work() -> None:
    """The signal comes to the main thread, which waits for the others before it passes it on."""
    ended: list[int] = []

    def task(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)
        ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        for_each(task, range(50), 3)
    count = len(ended)
    time.sleep(0.05)
    assert len(ended) == count < 10


def test_batches_hold_every_task_in_order() -> None:
    assert list(batches([], lambda task: task, 5)) == []
    assert list(batches([1, 1, 1, 9, 2, 3, 1], lambda task: task, 5)) == [[1, 1, 1, 9], [2, 3], [1]]
    assert list(batches([0] * 7, lambda task: task, 5, most=3)) == [[0] * 3, [0] * 3, [0]]


def test_workers() -> None:
    assert resolve_workers(None) >= 1
    assert resolve_workers(3) == 3
    for workers in (0, -1):
        with pytest.raises(RecipeError, match="workers"):
            resolve_workers(workers)
