"""What a forked process must not inherit: locks that threads held which were not forked with it, and pools of such threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

__all__ = ["FORKS", "forking_lock", "in_forked"]

_LOCKS: WeakSet[Any] = WeakSet()
FORKS = [0]
"""How many forks lie between this process and the one that imported deltapack: what was noted in another has another number."""


def forking_lock() -> threading.Lock:
    """Return a lock that is free in a process that is forked, whoever held it.

    What it guards must make sense between any two steps of who holds it: the fork may come there.
    """
    lock = threading.Lock()
    _LOCKS.add(lock)
    return lock


def in_forked(function: Callable[[], object]) -> None:
    """Call a function in each process that is forked from now on, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def _begin() -> None:
    FORKS[0] += 1
    for lock in list(_LOCKS):
        lock._at_fork_reinit()  # as `threading`, `logging` and `concurrent.futures` do with theirs


in_forked(_begin)
