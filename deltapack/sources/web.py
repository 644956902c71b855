"""Files of web servers: ranges asked for one by one, and every answer checked against what was asked."""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin
from urllib.request import getproxies, proxy_bypass

from deltapack.errors import BackendError, SourceError
from deltapack.sources import retrying
from deltapack.sources.found import Found, changed
from deltapack.sources.listing import MOST_BYTES, WELL_KNOWN, names_of_page
from deltapack.sources.retrying import Transient, with_retries
from deltapack.sources.urls import Url

__all__ = ["WebStore"]

_MOST_REDIRECTS = 5
_WHOLE = 4 << 20
"""Bytes of a file that is taken whole from a server that gives no ranges."""
_PIECE = 1 << 18
_DRAINED = 1 << 16
"""Bytes of an answer that are read to the end for the sake of the connection."""
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_MISSING = frozenset((404, 410))
_DENIED = frozenset((401, 403, 407))
_FILE = re.compile(r".*\.(json|jsonl|safetensors|bin|pt|pth|ckpt|dpk|md|txt|model|jinja|ya?ml|gguf|py|distcp|metadata)|\.metadata")
_NO_RANGES = "Download it first (curl -LO), and name the file that is then here."


class _Refused(Exception):
    """An answer that trying again does not change, by its status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.status, self.reason = status, reason


class WebStore:
    """`https://`, and `http://` of this machine."""

    def find(self, url: Url) -> Found | None:
        """Return what is there, now; none where nothing is.

        Raises:
            SourceError: Nobody says.
        """
        try:
            found, is_page = with_retries(url, lambda: self._look(url))
        except _Refused as refused:
            if refused.status not in _MISSING and (refused.status != 403 or _FILE.fullmatch(url.name)):
                raise _refusal(url, refused) from refused
        else:
            if found.is_folder or not is_page or _FILE.fullmatch(url.name):
                return found
        if _FILE.fullmatch(url.name):
            return None
        return Found(is_folder=True) if self.names(url) else None

    def _look(self, url: Url) -> tuple[Found, bool]:
        """Ask for the first byte of a file; return also whether the answer is a page."""
        with _answer(url, {"Range": "bytes=0-0"}) as (response, last):
            headers, status = response.headers, response.status
            is_page = headers.get("Content-Type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")
            if last.partition("?")[0].endswith("/") and not url.request().partition("?")[0].endswith("/"):
                return Found(is_folder=True), is_page
            told = _RANGE.fullmatch(headers.get("Content-Range", ""))
            in_parts = status == 416 or (status == 206 and told is not None and told[1] == "0")
            size = int(told[3]) if told is not None and in_parts else _whole_number(headers.get("Content-Length"))
            if size is None:
                if is_page and not _FILE.fullmatch(url.name):
                    return Found(is_folder=False), is_page
                hint = "Download it first (curl -LO), and name the file that is then here."
                raise SourceError("the server does not say how long the file is", path=str(url), hint=hint)
            return Found(False, size, _version(headers), _time(headers.get("Last-Modified"))), is_page

    def names(self, url: Url) -> Mapping[str, Found | None]:
        """Return the names in a folder: those that the server lists, else those of the files of models that are there.

        Raises:
            SourceError: The server does not answer.
        """
        try:
            listed = with_retries(url, lambda: self._listing(url))
        except _Refused as refused:
            if refused.status in (401, 407):
                raise _refusal(url, refused) from refused
            listed = {}
        return listed or self._probed(url)

    def _listing(self, url: Url) -> dict[str, Found | None]:
        with _answer(url, {}, folder=True) as (response, last):
            if response.status != 200:
                return {}
            data = _read_at_most(response, MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                found = f"more than {MOST_BYTES} bytes"
                raise SourceError("the list of the folder is too long", path=str(url), expected=f"at most {MOST_BYTES}", found=found)
            names = names_of_page(data, response.headers.get("Content-Type", ""), last)
            return {name: Found(is_folder=True) if is_folder else None for name, is_folder in names.items()}

    def _probed(self, url: Url) -> dict[str, Found | None]:
        """Look for the files that models have; a server that answers everything with a page has none of them."""
        there: dict[str, Found | None] = {}
        for name in WELL_KNOWN:
            child = url.child(name)
            try:
                found, is_page = with_retries(child, lambda child=child: self._look(child))  # type: ignore[misc]
            except _Refused:
                continue
            if not is_page and not found.is_folder:
                there[name] = found
        return there

    def fetch(self, url: Url, found: Found, start: int, stop: int, stopped: threading.Event) -> bytes:
        """Return bytes [start, stop) of a file, exactly; what has come before a connection drops is kept.

        Raises:
            SourceError: They cannot be read, or the file is another by now.
        """
        data = bytearray()

        def attempt() -> bytes:
            before = len(data)
            try:
                self._fetch_some(url, found, start, stop, data, stopped)
            except Transient as failure:
                failure.moved = len(data) > before
                raise
            return bytes(data)

        try:
            return with_retries(url, attempt, stopped)
        except _Refused as refused:
            if refused.status in _MISSING:
                raise changed(url, f"{found.size} bytes", "that it is gone") from refused
            raise _refusal(url, refused) from refused

    def _fetch_some(self, url: Url, found: Found, start: int, stop: int, data: bytearray, stopped: threading.Event) -> None:
        """Append to `data`, the bytes from `start` on that are there already, until it holds those before `stop`."""
        at = start + len(data)
        with _answer(url, {"Range": f"bytes={at}-{stop - 1}"}) as (response, _):
            headers = response.headers
            skip = _check_answer(url, found, at, stop, response)
            expected, begun = stop - start, time.monotonic()
            for piece in _pieces(response):
                drop = min(skip, len(piece))
                skip -= drop
                data += memoryview(piece)[drop : drop + expected - len(data)]
                if len(data) == expected:
                    break
                if stopped.is_set() or time.monotonic() - begun > retrying.TOTAL_SECONDS:
                    raise Transient("the answer takes too long")
            if len(data) < expected:
                raise Transient(f"the answer ended after {len(data)} of {expected} bytes", _retry_after(headers))


def _check_answer(url: Url, found: Found, at: int, stop: int, response: Any) -> int:
    """Check that an answer has the bytes [at, stop) of the file that was opened; return how many of it to leave out.

    Raises:
        SourceError: It has others, or those of another file.
    """
    headers, told = response.headers, _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    version = _version(headers)
    if version != found.version:
        raise changed(url, f"version {found.version or 'unknown'}", version or "unknown")
    if response.status == 416:
        raise changed(url, f"{found.size} bytes", f"{told[3]}" if told else "fewer")
    if response.status == 206:
        if not told:
            raise SourceError("the server does not say which part of the file it gives", path=str(url), hint=_NO_RANGES)
        if int(told[3]) != found.size:
            raise changed(url, f"{found.size} bytes", told[3])
        if told[1] is None or (int(told[1]), int(told[2])) != (at, stop - 1):
            expected, parts = f"bytes {at}-{stop - 1}", f"{told[1]}-{told[2]}"
            raise SourceError("the server gives another part than was asked for", path=str(url), expected=expected, found=parts)
        return 0
    size = _whole_number(headers.get("Content-Length"))
    if size is not None and size != found.size:
        raise changed(url, f"{found.size} bytes", size)
    if found.size > _WHOLE:
        raise SourceError("the server gives files only whole, not in parts", path=str(url), hint=_NO_RANGES)
    return at


@contextmanager
def _answer(url: Url, headers: Mapping[str, str], *, folder: bool = False) -> Iterator[tuple[Any, str]]:
    """Ask a server, follow where it points, and yield its answer with the address that has given it.

    Raises:
        SourceError: It points elsewhere without end, or to another kind of place; or its certificate is not good.
        Transient: It cannot be reached, or asks to come again.
        _Refused: It refuses.
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
            if target.split("/")[2] != before.split("/")[2]:
                sent.pop("authorization", None)
        else:
            raise SourceError("the server points elsewhere without end", path=str(url), found=f"{_MOST_REDIRECTS} redirects")
        if response.status in _AGAIN:
            raise Transient(f"status {response.status} {response.reason or ''}".strip(), _retry_after(response.headers))
        if response.status >= 400 and response.status != 416:
            raise _Refused(response.status, response.reason or "")
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


def _pieces(response: Any) -> Iterator[bytes]:
    while piece := response.read1(_PIECE):
        yield piece


def _read_at_most(response: Any, most: int) -> bytes:
    data = bytearray()
    for piece in _pieces(response):
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


def _refusal(url: Url, refused: _Refused) -> SourceError:
    hint = None
    if refused.status in _DENIED:
        hint = "The address may need a signature that is still valid, a user (https://NAME:PASSWORD@...), or be written otherwise."
    return SourceError("the server refuses", path=str(url), found=f"status {refused.status} {refused.reason}".strip(), hint=hint)


def _version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _time(text: str | None) -> float:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait."""
    text = headers.get("Retry-After")
    number = _whole_number(text)
    if number is not None:
        return float(number)
    return max(0.0, _time(text) - time.time()) if text and _time(text) else None


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
