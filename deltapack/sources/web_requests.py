"""Requests to web servers, through urllib3: redirects followed within bounds, and what a connection or an answer means."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin
from urllib.request import getproxies, proxy_bypass

from deltapack.errors import BackendError, SourceError
from deltapack.sources import retrying
from deltapack.sources.retrying import Transient
from deltapack.sources.urls import Url, is_here

__all__ = ["Refused", "answer", "pieces_of", "read_at_most", "retry_after", "time_of", "whole_number"]

_MOST_REDIRECTS = 5
_PIECE = 1 << 18
_DRAINED = 1 << 16
"""Bytes of an answer that are read to the end for the sake of the connection."""
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))


class Refused(Exception):
    """An answer that trying again does not change, by its status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.status, self.reason = status, reason


@contextmanager
def answer(url: Url, headers: Mapping[str, str], *, folder: bool = False) -> Iterator[tuple[Any, str]]:
    """Ask a server, follow where it points, and yield its answer with the address that has given it.

    Raises:
        SourceError: It points elsewhere without end, or to another kind of place; or its certificate is not good.
        Transient: It cannot be reached, or asks to come again.
        Refused: It refuses.
    """
    urllib3 = _urllib3()
    target, sent = url.request(folder=folder), {"Accept-Encoding": "identity", "User-Agent": "deltapack", **headers}
    if url.user:
        sent |= urllib3.make_headers(basic_auth=unquote(url.user))
    timeout = urllib3.Timeout(connect=retrying.CONNECT_SECONDS, read=retrying.STALL_SECONDS)
    response = None
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            response = _pool(target).request(
                "GET", target, headers=sent, preload_content=False, redirect=False, retries=False, timeout=timeout
            )
            if response.status not in (301, 302, 303, 307, 308):
                break
            before, target = target, _pointed(target, response.headers.get("Location", ""))
            response.close()
            if target.partition("://")[0] != url.scheme:
                raise SourceError("the server points to a place of another kind", path=str(url), expected=f"{url.scheme}://")
            if url.scheme == "http" and not is_here(target):
                raise SourceError("http is read from this machine only, and the server points to another", path=str(url))
            if target.split("/")[2] != before.split("/")[2]:
                sent.pop("authorization", None)
        else:
            raise SourceError("the server points elsewhere without end", path=str(url), found=f"{_MOST_REDIRECTS} redirects")
        if response.status in _AGAIN:
            raise Transient(f"status {response.status} {response.reason or ''}".strip(), retry_after(response.headers))
        if response.status >= 400 and response.status != 416:
            raise Refused(response.status, response.reason or "")
        if response.headers.get("Content-Encoding", "identity") not in ("identity", ""):
            raise SourceError("the server changes files on their way", path=str(url), found=response.headers["Content-Encoding"])
        yield response, target
    except urllib3.exceptions.HTTPError as error:
        _raise(url, error)
    finally:
        if response is not None:
            _let_go(response)


def _pointed(target: str, location: str) -> str:
    """Return where an answer points to; nothing where that is no address."""
    try:
        return urljoin(target, location) if location else ""
    except ValueError:
        return ""


def _raise(url: Url, error: Exception) -> NoReturn:
    """Raise what an error of the connection means; nothing of the address that may be secret is in it."""
    exceptions = _urllib3().exceptions
    reason = getattr(error, "reason", error)
    if isinstance(error, exceptions.SSLError) or isinstance(reason, exceptions.SSLError):
        hint = "Is the clock right, and is the certificate of a proxy known (SSL_CERT_FILE)?"
        raise SourceError("the server cannot be trusted", path=str(url), found=type(error).__name__, hint=hint) from error
    if isinstance(error, exceptions.LocationValueError):
        raise SourceError("the address cannot be read", path=str(url), found=type(error).__name__) from error
    texts = {  # in this order: a connection that is refused is a kind of one that takes too long
        exceptions.NewConnectionError: "no connection",
        exceptions.ReadTimeoutError: f"nothing came for {retrying.STALL_SECONDS:.0f} s",
        exceptions.ConnectTimeoutError: f"no connection within {retrying.CONNECT_SECONDS:.0f} s",
        exceptions.ProtocolError: "the connection was dropped",
    }
    raise Transient(next((text for kind, text in texts.items() if isinstance(error, kind)), type(error).__name__)) from error


def pieces_of(response: Any) -> Iterator[bytes]:
    """Yield the body of an answer as it comes; raises what `answer` turns into an error."""
    while piece := response.read1(_PIECE):
        yield piece


def read_at_most(response: Any, most: int) -> bytes:
    """Return the body of an answer, or its begin as soon as it has `most` bytes or more."""
    data = bytearray()
    for piece in pieces_of(response):
        data += piece
        if len(data) >= most:
            break
    return bytes(data)


def _let_go(response: Any) -> None:
    """Give the connection back if little is left of the answer; else it is closed."""
    if response.length_remaining is not None and response.length_remaining <= _DRAINED:
        response.drain_conn()
        response.release_conn()
    else:
        response.close()


def whole_number(text: str | None) -> int | None:
    """Return the number that a header holds, if it is one."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def time_of(text: str | None) -> float:
    """Return the time that a header holds, in seconds since 1970; 0 where it holds none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait."""
    text = headers.get("Retry-After")
    number = whole_number(text)
    if number is not None:
        return float(number)
    return max(0.0, time_of(text) - time.time()) if text and time_of(text) else None


def _urllib3() -> Any:
    """Import urllib3, which only addresses need.

    Raises:
        BackendError: It is not there.
    """
    try:
        import urllib3
    except ImportError as error:
        hint = "pip install 'deltapack[remote]', or download the files first."
        raise BackendError("https:// needs urllib3", found=str(error), hint=hint) from error
    return urllib3


def _pool(target: str) -> Any:
    """Return the connections to use for an address: through a proxy where the environment names one."""
    scheme, host = target.partition("://")[0], target.split("/")[2].rpartition("@")[2]
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    return _pools(proxy)


@cache
def _pools(proxy: str | None) -> Any:
    urllib3 = _urllib3()
    return urllib3.ProxyManager(proxy, maxsize=16) if proxy else urllib3.PoolManager(maxsize=16)
