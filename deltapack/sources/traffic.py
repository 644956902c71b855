"""Bytes on their way from and to other machines, told to whoever shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deltapack.forks import forking_lock

__all__ = ["Traffic", "note", "watch_traffic"]


@dataclass(frozen=True)
class Traffic:
    """Bytes so far.

    Attributes:
        received: Bytes that came.
        sent: Bytes that the other side has taken.
        to_send: Bytes that are to be sent, as far as is known; at least `sent`.
    """

    received: int = 0
    sent: int = 0
    to_send: int = 0


Watcher = Callable[[Traffic], None]
_LOCK = forking_lock()
_WATCHERS: dict[Watcher, Traffic] = {}


@contextmanager
def watch_traffic(watcher: Watcher) -> Iterator[None]:
    """Tell a watcher, from any thread, of what comes and goes while the block runs."""
    with _LOCK:
        _WATCHERS[watcher] = Traffic()
    try:
        yield
    finally:
        with _LOCK:
            del _WATCHERS[watcher]


def note(*, received: int = 0, sent: int = 0, to_send: int = 0) -> None:
    """Add bytes to what the watchers were told."""
    with _LOCK:
        for watcher, so_far in _WATCHERS.items():
            _WATCHERS[watcher] = Traffic(so_far.received + received, so_far.sent + sent, so_far.to_send + to_send)
        told = list(_WATCHERS.items())
    for watcher, traffic in told:
        watcher(traffic)
