"""What is where on other machines, kept for a moment: one command asks for the same file many times."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

from deltapack.forks import forking_lock, in_forked
from deltapack.sources.found import Found, Store
from deltapack.sources.urls import WEB, Url

__all__ = ["find", "forget", "names", "store_of"]

KEPT_SECONDS = 10.0
_MOST_KEPT = 4096
_LOCK = forking_lock()
_FOUND: dict[Url, tuple[float, Found | None]] = {}
_NAMES: dict[Url, tuple[float, Mapping[str, Found | None]]] = {}


@cache
def store_of(scheme: str) -> Store:
    """Return what reads addresses of a scheme; only who reads some pays for importing it."""
    if scheme in WEB:
        from deltapack.sources.web import WebStore

        return WebStore()
    from deltapack.sources.objects import ObjectStore

    return ObjectStore(scheme)


def find(url: Url) -> Found | None:
    """Return what is there, or was a moment ago; none where nothing is.

    Raises:
        SourceError: Nobody says.
    """
    now = time.monotonic()
    kept = _FOUND.get(url)
    if kept is not None and now - kept[0] < KEPT_SECONDS:
        return kept[1]
    found = store_of(url.scheme).find(url)
    _keep(url, found)
    return found


def names(url: Url) -> Mapping[str, Found | None]:
    """Return the names in a folder, now or a moment ago; raises as `find`."""
    now = time.monotonic()
    kept = _NAMES.get(url)
    if kept is not None and now - kept[0] < KEPT_SECONDS:
        return kept[1]
    found = store_of(url.scheme).names(url)
    with _LOCK:
        if len(_NAMES) >= _MOST_KEPT:
            _NAMES.clear()
        _NAMES[url] = now, found
    for name, child in found.items():
        if child is not None:
            _keep(url.child(name), child)
    return found


def forget() -> None:
    """Ask again from now on."""
    with _LOCK:
        _FOUND.clear()
        _NAMES.clear()


def _keep(url: Url, found: Found | None) -> None:
    with _LOCK:
        if len(_FOUND) >= _MOST_KEPT:
            _FOUND.clear()
        _FOUND[url] = time.monotonic(), found


in_forked(store_of.cache_clear)
