"""A file of another machine, read at positions: ranges in parallel, kept for a while, and ahead of who reads one after another."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from deltapack.forks import FORKS, forking_lock, in_forked
from deltapack.sources.blocks import BLOCKS, GRAIN
from deltapack.sources.found import Found
from deltapack.sources.reading import Faults, read_exactly
from deltapack.sources.stores import store_of
from deltapack.sources.traffic import note
from deltapack.sources.urls import Url

__all__ = ["RemoteFile"]

_RUN, _LEAST_AHEAD, _MOST_AHEAD = 8 << 20, 4 << 20, 16 << 20
"""Bytes of the longest request; of the shortest and the longest stretch that is read ahead."""
_FEW, _WIDE = 16, 16
"""After so many requests for one file, each is for so many pieces: whoever reads here and there waits longer than the bytes take."""
_WINDOW = 32 << 20
"""Bytes of a long read that are on their way at once."""
_REQUESTS = 8
_STREAKS = 32
_SLACK = 4096
"""Bytes that may be left out between two reads that follow one another: padding."""
_IDS = itertools.count()


class RemoteFile:
    """A file of another machine opened for reads at positions, by any number of threads.

    Each answer is checked to be of the file that was opened. What is read is rounded to pieces of 64 KiB; who reads on where a read has
    ended is read ahead of, by no more than was read in a row.

    Attributes:
        path: What it is called.
        size: Its bytes.
        version: What changes with its content.

    Args:
        path: What it is called in errors.
        url: Where it is.
        faults: The errors to raise; those of network and server are `SourceError`.

    Raises:
        DeltapackError: As `faults` says: there is no such file, or it is a folder.
        SourceError: Nobody says.
    """

    def __init__(self, path: Path, url: Url, faults: Faults) -> None:
        self.path, self._url, self._faults = path, url, faults
        self._store = store_of(url.scheme)
        found = self._store.find(url)
        if found is None:
            raise faults.missing(path)
        if found.is_folder:
            raise faults.unfit(path, "not a regular file")
        self._found: Found = found
        self.size, self.version = found.size, found.version
        self._id = next(_IDS)
        self._lock, self._fork = forking_lock(), FORKS[0]
        self._coming: dict[int, tuple[int, Future[bytes]]] = {}
        self._streaks: OrderedDict[int, int] = OrderedDict()
        self._stopped, self._asked = threading.Event(), 0

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raises as `read_into`."""
        return read_exactly(self, self._faults, offset, length)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (format B) with the bytes from `offset`.

        Raises:
            DeltapackError: As `faults` says: the file ends before, or was closed.
            SourceError: They cannot be fetched, or the file is another by now.
        """
        end = offset + len(view)
        if end > self.size:
            raise self._faults.ended(self.path, end, self.size)
        if self._stopped.is_set():
            raise self._faults.unread(self.path, "the file is closed")
        if self._fork != FORKS[0]:
            self._begin_anew()
        at = offset
        while at < end:
            stop = min(end, at + _WINDOW)
            self._window(at, stop, view[at - offset : stop - offset])
            at = stop
        self._read_ahead(offset, end)

    def close(self) -> None:
        """Let the file go; closing twice is fine."""
        self._stopped.set()
        BLOCKS.drop(self._id)

    def _begin_anew(self) -> None:
        """Forget requests of the process that was forked, and its connections: they are not this one's."""
        with self._lock:
            if self._fork != FORKS[0]:
                self._store = store_of(self._url.scheme)
                self._coming, self._fork = {}, FORKS[0]

    def _window(self, start: int, stop: int, view: memoryview) -> None:
        """Fill a view with the bytes [start, stop), from memory as far as they are there, and by requests side by side."""
        first, last = start // GRAIN, -(-stop // GRAIN)
        pieces: dict[int, bytes] = {}
        with self._lock:
            for number in range(first, last):
                piece = None if number in self._coming else BLOCKS.get(self._id, number)
                if piece is not None:
                    pieces[number] = piece
            awaited = {number: self._coming[number] for number in range(first, last) if number in self._coming}
            runs = self._begin(self._widened([number for number in range(first, last) if number not in pieces and number not in awaited]))
        for run in runs[1:]:
            self._soon(*run)
        if runs:
            self._fetch(*runs[0])
        for begin, end, future in runs:
            awaited |= dict.fromkeys(range(begin, end), (begin, future))
        for number in range(first, last):
            low, high = max(start, number * GRAIN), min(stop, (number + 1) * GRAIN)
            if number in pieces:
                data, base = pieces[number], number * GRAIN
            else:
                begin, future = awaited[number]
                data, base = future.result(), begin * GRAIN
            view[low - start : high - start] = memoryview(data)[low - base : high - base]

    def _widened(self, numbers: list[int]) -> list[int]:
        """Return pieces to ask for: those that are missing, and after many requests what lies around them; the lock is held."""
        if self._asked < _FEW:
            return numbers
        around = sorted({near for number in numbers for near in range(number // _WIDE * _WIDE, number // _WIDE * _WIDE + _WIDE)})
        missing, last = set(numbers), -(-self.size // GRAIN)
        return [near for near in around if near in missing or (near < last and near not in self._coming and not BLOCKS.has(self._id, near))]

    def _begin(self, numbers: list[int]) -> list[tuple[int, int, Future[bytes]]]:
        """Announce requests for pieces that are missing, those side by side in one; the lock is held."""
        runs: list[tuple[int, int, Future[bytes]]] = []
        for number in numbers:
            if runs and runs[-1][1] == number and (number + 1 - runs[-1][0]) * GRAIN <= _RUN:
                runs[-1] = runs[-1][0], number + 1, runs[-1][2]
            else:
                runs.append((number, number + 1, Future()))
                self._asked += 1
            self._coming[number] = runs[-1][0], runs[-1][2]
        return runs

    def _soon(self, begin: int, end: int, future: Future[bytes]) -> None:
        """Have another thread make a request; where the system starts none, this one does."""
        try:
            _pool().submit(self._fetch, begin, end, future)
        except RuntimeError:
            self._fetch(begin, end, future)

    def _fetch(self, begin: int, end: int, future: Future[bytes]) -> None:
        """Make a request, and hand its pieces to all who wait for them."""
        try:
            data = self._store.fetch(self._url, self._found, begin * GRAIN, min(self.size, end * GRAIN), self._stopped)
        except BaseException as error:
            self._done(begin, end)
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        note(received=len(data))
        if not self._stopped.is_set():
            BLOCKS.put(self._id, begin, data)
        self._done(begin, end)
        future.set_result(data)

    def _done(self, begin: int, end: int) -> None:
        with self._lock:
            for number in range(begin, end):
                self._coming.pop(number, None)

    def _read_ahead(self, offset: int, end: int) -> None:
        """Ask for what follows, if this read goes on where another has ended: for no more than was read so far."""
        with self._lock:
            before = next((place for place in self._streaks if 0 <= offset - place <= _SLACK), None)
            streak = end - offset + (0 if before is None else self._streaks.pop(before))
            self._streaks[end] = streak
            while len(self._streaks) > _STREAKS:
                self._streaks.popitem(last=False)
            ahead = min(streak, _MOST_AHEAD) // _LEAST_AHEAD * _LEAST_AHEAD
            if before is None or not ahead:
                return
            first, last = -(-end // GRAIN), -(-min(self.size, end + ahead) // GRAIN)
            missing = [number for number in range(first, last) if number not in self._coming and not BLOCKS.has(self._id, number)]
            if not missing or (len(missing) * GRAIN < _LEAST_AHEAD and missing[-1] + 1 < -(-self.size // GRAIN)):
                return
            runs = self._begin(missing)
        for run in runs:
            self._soon(*run)


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads that make requests; none of them waits for another."""
    return ThreadPoolExecutor(_REQUESTS, "deltapack-remote")


in_forked(_pool.cache_clear)
