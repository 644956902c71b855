"""Threads: order, a bound on what is in flight, and errors in their place."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from deltapack.errors import RecipeError
from deltapack.parallel import ordered_map, resolve_workers

WORKERS = [1, 2, 3, 8]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(workers: int, count: int) -> None:
    started = threading.Event()

    def task(number: int) -> int:
        if number == 0 and workers > 1 and count > 1:
            started.wait(10)  # the first result is ready last
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
    ran = []
    results = ordered_map(lambda number: ran.append(number) or number, range(1000), workers)
    assert next(results) == 0
    results.close()
    assert max(ran) <= workers + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deltapack")]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_while_tasks_are_listed(workers: int) -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise RecipeError("stop")

    with pytest.raises(RecipeError, match="stop"):
        list(ordered_map(lambda number: number, tasks(), workers))


def test_workers() -> None:
    assert resolve_workers(None) >= 1
    assert resolve_workers(3) == 3
    for workers in (0, -1):
        with pytest.raises(RecipeError, match="workers"):
            resolve_workers(workers)
