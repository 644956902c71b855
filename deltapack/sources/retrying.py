"""What a network does for a moment is tried again, later and later; what a server means to say is not."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from deltapack.errors import SourceError
from deltapack.sources.urls import Url

__all__ = ["ATTEMPTS", "CONNECT_SECONDS", "STALL_SECONDS", "TOTAL_SECONDS", "Transient", "with_retries"]

ATTEMPTS = 6
"""Tries in a row that bring nothing."""
TOTAL_SECONDS = 300.0
"""After which no request is begun again."""
CONNECT_SECONDS, STALL_SECONDS = 10.0, 30.0
"""How long a connection may take, and how long nothing may come."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
Result = TypeVar("Result")


class Transient(Exception):
    """A try has failed in a way that the next one may not.

    Args:
        reason: Why, in a clause.
        wait: Seconds that the server asks to wait.
        moved: Whether the try brought something, so that the next one has less to do.
    """

    def __init__(self, reason: str, wait: float | None = None, *, moved: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.moved = reason, wait, moved


def with_retries(url: Url, attempt: Callable[[], Result], stopped: threading.Event | None = None, *, writing: bool = False) -> Result:
    """Return what `attempt` returns, tried again while it raises `Transient`.

    Args:
        url: What is read, for the error.
        attempt: One try.
        stopped: Set when nobody waits for the result any more.
        writing: Whether something is written, for the error.

    Raises:
        SourceError: It never did, or it was stopped.
    """
    event, begun, fruitless, tried = stopped or threading.Event(), time.monotonic(), 0, 0
    while True:
        tried += 1
        try:
            return attempt()
        except Transient as failure:
            fruitless = 0 if failure.moved else fruitless + 1
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**fruitless) * random.uniform(0.5, 1.0)
            if failure.wait is not None:
                wait = max(wait, failure.wait)
            spent = time.monotonic() - begun
            if fruitless >= ATTEMPTS or spent + wait > TOTAL_SECONDS:
                found = f"{failure.reason}, {tried} tries in {spent:.0f} s"
                if failure.wait is not None and failure.wait > TOTAL_SECONDS:
                    found += f", and the server asks to wait {failure.wait:.0f} s"
                hint = "Try again later." if writing else "Try again later, or download it first."
                raise SourceError(
                    f"the file cannot be {'written' if writing else 'read'}", path=str(url), found=found, hint=hint
                ) from failure
            if event.wait(wait):
                raise SourceError(f"{'writing' if writing else 'reading'} was given up", path=str(url)) from failure
