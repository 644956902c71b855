"""Threads that make in the background what a reader will want next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

__all__ = ["ReadAhead", "Streams"]

_STREAMS = 64
_WAITING = 1024
"""Tasks that wait at once, at most."""


class ReadAhead:
    """A few threads, started when there is something to do first; what fails is left to whoever asks for it."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._todo: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, tasks: Iterable[Callable[[], object]]) -> None:
        """Have tasks done; those that are too many are dropped."""
        wanted = list(tasks)
        with self._lock:
            if self._closed or not wanted:
                return
            if not self._threads:
                with suppress(RuntimeError):  # the system starts no more: nothing is lost but time
                    for _ in range(self._workers):
                        thread = threading.Thread(target=self._work, name="deltapack-ahead", daemon=True)
                        thread.start()
                        self._threads.append(thread)
            for task in wanted[: max(0, _WAITING - self._todo.qsize())]:
                self._todo.put(task)

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        with self._lock:
            self._closed, threads = True, self._threads
            self._threads = []
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in threads:
            self._todo.put(None)
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while (task := self._todo.get()) is not None:
            with suppress(Exception):  # the reader meets the same error at its place, or never asks
                task()
            del task


class Streams:
    """Who reads one piece after another: a read that begins where one ended is the next of the same reader."""

    def __init__(self) -> None:
        self._ends: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str, start: int) -> int | None:
        """Return up to where it was looked ahead for a reader who goes on here; none where no read of the file ended here."""
        with self._lock:
            return self._ends.pop((name, start), None)

    def put(self, name: str, stop: int, planned: int) -> None:
        """Note where a read ended, and up to where it was looked ahead."""
        with self._lock:
            self._ends[name, stop] = planned
            if len(self._ends) > _STREAMS:
                self._ends.popitem(last=False)
