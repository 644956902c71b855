"""Ctrl-C before any line that the calling thread runs in `parallel`: it comes out, no thread stays behind, nothing waits for ever."""

from __future__ import annotations

import _thread
import faulthandler
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from deltapack import parallel


def slowly(task: int) -> int:
    time.sleep(0.001)
    return task


def each(task: Callable[[int], int]) -> None:
    parallel.for_each(task, range(7), 3)


def ordered(task: Callable[[int], int]) -> None:
    assert list(parallel.ordered_map(task, iter(range(7)), 3)) == list(range(7))


def closed(task: Callable[[int], int]) -> None:
    results = parallel.ordered_map(task, iter(range(7)), 3)
    next(results)
    results.close()


@pytest.fixture
def watchdog() -> Iterator[None]:
    """A hang ends the process with all its stacks, instead of never."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def interrupted(call: Callable[[Callable[[int], int]], None], number: int) -> bool:
    """Make a call that is interrupted before its so-and-so-many-th line; false where it has fewer."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != parallel.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(slowly)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return lines >= number


@pytest.mark.parametrize("call", [each, ordered, closed])
def test_an_interrupt_before_any_line(call: Callable[[Callable[[int], int]], None], watchdog: None) -> None:
    threads, number = _thread._count(), 1
    while interrupted(call, number):
        until = time.monotonic() + 10
        while _thread._count() > threads and time.monotonic() < until:
            time.sleep(0.001)
        assert _thread._count() <= threads, f"a thread is left after an interrupt before line {number}"
        number += 1
    assert number > 20
