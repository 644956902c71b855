"""What a request for a file asks for: its path, conditions and range, as RFC 9110 reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_to_bytes

__all__ = ["Answer", "Headers", "parts_of", "wanted"]

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True)
class Answer:
    """How a request is answered.

    Attributes:
        status: 200, 206, 304, 412 or 416.
        start: First byte of the file that is sent.
        stop: End of the part that is sent.
    """

    status: int
    start: int = 0
    stop: int = 0


def parts_of(path: str) -> list[str] | None:
    """Return the parts of a path, the last one empty where it ends in `/`; none where one is not a plain name.

    >>> parts_of("/math/unet/a%20b"), parts_of("/math/"), parts_of("/a/../b"), parts_of("/a%2fb")
    (['math', 'unet', 'a b'], ['math', ''], None, None)
    """
    try:
        parts = [unquote_to_bytes(part).decode() for part in path.removeprefix("/").split("/")]
    except UnicodeDecodeError:
        return None
    plain = all(part not in (".", "..") and not re.search(r"[/\\\x00-\x1f\x7f]", part) for part in parts)
    return parts if path.startswith("/") and plain and all(parts[:-1]) else None


class Headers(Protocol):
    """Headers of a request; their names in any case."""

    def get(self, name: str, /) -> str | None:
        """Return a header; none where it was not sent."""


def wanted(headers: Headers, size: int, etag: str) -> Answer:
    """Decide on conditions first, then on the range; several ranges, and what is none, are answered with the whole file.

    Args:
        headers: Of the request.
        size: Bytes of the file.
        etag: Its strong validator, with quotes.
    """
    match, none_match, of_range = headers.get("If-Match"), headers.get("If-None-Match"), headers.get("If-Range")
    if match is not None and match.strip() != "*" and etag not in _TAG.findall(match):
        return Answer(412)
    if none_match is not None and (none_match.strip() == "*" or etag in [tag.removeprefix("W/") for tag in _TAG.findall(none_match)]):
        return Answer(304)
    found = _RANGE.fullmatch((headers.get("Range") or "").replace(" ", ""))
    if found is None or found[0] == "bytes=-" or (of_range is not None and of_range.strip() != etag):
        return Answer(200, 0, size)
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
        if found[2] and int(found[2]) < start:
            return Answer(200, 0, size)
    return Answer(206, start, stop) if start < size else Answer(416)
