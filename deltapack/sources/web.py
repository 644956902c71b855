"""Files of web servers: ranges asked for one by one, and every answer checked against what was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from deltapack.errors import SourceError
from deltapack.sources import retrying
from deltapack.sources.found import Found, changed
from deltapack.sources.listing import MOST_BYTES, WELL_KNOWN, names_of_page
from deltapack.sources.retrying import Transient, with_retries
from deltapack.sources.urls import Url
from deltapack.sources.web_requests import Refused, answer, pieces_of, read_at_most, retry_after, time_of, whole_number

__all__ = ["WebStore"]

_WHOLE = 4 << 20
"""Bytes of a file that is taken whole from a server that gives no ranges."""
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_MISSING = frozenset((404, 410))
_DENIED = frozenset((401, 403, 407))
_FILE = re.compile(r".*\.(json|jsonl|safetensors|bin|pt|pth|ckpt|dpk|md|txt|model|jinja|ya?ml|gguf|py|distcp|metadata)|\.metadata")
_NO_RANGES = "Download it first (curl -LO), and name the file that is then here."


class WebStore:
    """`https://`, and `http://` of this machine."""

    def find(self, url: Url) -> Found | None:
        """Return what is there, now; none where nothing is.

        Raises:
            SourceError: Nobody says.
        """
        try:
            found, is_page = with_retries(url, lambda: self._look(url))
        except Refused as refused:
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
        with answer(url, {"Range": "bytes=0-0"}) as (response, last):
            headers, status = response.headers, response.status
            is_page = headers.get("Content-Type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")
            if last.partition("?")[0].endswith("/") and not url.request().partition("?")[0].endswith("/"):
                return Found(is_folder=True), is_page
            told = _RANGE.fullmatch(headers.get("Content-Range", ""))
            in_parts = status == 416 or (status == 206 and told is not None and told[1] == "0")
            size = int(told[3]) if told is not None and in_parts else whole_number(headers.get("Content-Length"))
            if size is None:
                if is_page and not _FILE.fullmatch(url.name):
                    return Found(is_folder=False), is_page
                hint = "Download it first (curl -LO), and name the file that is then here."
                raise SourceError("the server does not say how long the file is", path=str(url), hint=hint)
            return Found(False, size, _version(headers), time_of(headers.get("Last-Modified"))), is_page

    def names(self, url: Url) -> Mapping[str, Found | None]:
        """Return the names in a folder: those that the server lists, else those of the files of models that are there.

        Raises:
            SourceError: The server does not answer.
        """
        try:
            listed = with_retries(url, lambda: self._listing(url))
        except Refused as refused:
            if refused.status in (401, 407):
                raise _refusal(url, refused) from refused
            listed = {}
        return listed or self._probed(url)

    def _listing(self, url: Url) -> dict[str, Found | None]:
        with answer(url, {}, folder=True) as (response, last):
            if response.status != 200:
                return {}
            data = read_at_most(response, MOST_BYTES + 1)
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
            except Refused:
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
        except Refused as refused:
            if refused.status in _MISSING:
                raise changed(url, f"{found.size} bytes", "that it is gone") from refused
            raise _refusal(url, refused) from refused

    def _fetch_some(self, url: Url, found: Found, start: int, stop: int, data: bytearray, stopped: threading.Event) -> None:
        """Append to `data`, the bytes from `start` on that are there already, until it holds those before `stop`."""
        at = start + len(data)
        with answer(url, {"Range": f"bytes={at}-{stop - 1}"}) as (response, _):
            headers = response.headers
            skip = _checkanswer(url, found, at, stop, response)
            expected, begun = stop - start, time.monotonic()
            for piece in pieces_of(response):
                drop = min(skip, len(piece))
                skip -= drop
                data += memoryview(piece)[drop : drop + expected - len(data)]
                if len(data) == expected:
                    break
                if stopped.is_set() or time.monotonic() - begun > retrying.TOTAL_SECONDS:
                    raise Transient("the answer takes too long")
            if len(data) < expected:
                raise Transient(f"the answer ended after {len(data)} of {expected} bytes", retry_after(headers))


def _checkanswer(url: Url, found: Found, at: int, stop: int, response: Any) -> int:
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
    size = whole_number(headers.get("Content-Length"))
    if size is not None and size != found.size:
        raise changed(url, f"{found.size} bytes", size)
    if found.size > _WHOLE:
        raise SourceError("the server gives files only whole, not in parts", path=str(url), hint=_NO_RANGES)
    return at


def _refusal(url: Url, refused: Refused) -> SourceError:
    hint = None
    if refused.status in _DENIED:
        hint = "The address may need a signature that is still valid, a user (https://NAME:PASSWORD@...), or be written otherwise."
    return SourceError("the server refuses", path=str(url), found=f"status {refused.status} {refused.reason}".strip(), hint=hint)


def _version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""
