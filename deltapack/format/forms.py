"""The forms in which a base's side file may stand in for the one that a pack names. Implements spec/03-index.md section 3.7."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

__all__ = ["form_with", "is_descriptive", "joined", "like", "spread"]

_DESCRIPTIVE = re.compile(
    r"(readme|licen[cs]e|notice|copying|use_policy|citation|changelog|authors|contributing|requirements)([-._ ].*)?|.*\.(md|rst)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
# A string that is cut ends with the text: looking for its end from each of its quotes would take for ever.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}:,]|[^ \t\n\r"\[\]{}:,]+', re.DOTALL)
_DEPTH = 64


def is_descriptive(name: str) -> bool:
    """Whether a side file is for people: no loader reads it, so a result may have the base's of today."""
    return _DESCRIPTIVE.fullmatch(name.rpartition("/")[2]) is not None


def form_with(name: str, data: bytes, sha256: str) -> bytes | None:
    """Return a file as it is, with other line ends or, of JSON, laid out otherwise: whichever has the digest; none where none has."""
    return next((form for form in _forms(name, data) if hashlib.sha256(form).hexdigest() == sha256), None)


def _forms(name: str, data: bytes) -> Iterator[bytes]:
    """Yield the forms of a file, each made when it is asked for."""
    yield data
    unix = data.replace(b"\r\n", b"\n")
    yield unix
    yield unix.replace(b"\n", b"\r\n")
    makers: tuple[Callable[[bytes], bytes | None], ...] = (spread, joined) if name.endswith(".json") else ()
    for make in makers:
        form = make(data)
        if form is not None:
            yield form
            yield form + b"\n"


def like(name: str, data: bytes, model: bytes) -> bytes:
    """Return the form of `data` that is laid out as `model` is, by its first bytes; the content as it is where none is."""
    form = None
    if name.endswith(".json") and model[:2] != data[:2]:
        form = spread(data) if model.startswith(b"{\n") else joined(data)
    return data if form is None else form


def spread(data: bytes) -> bytes | None:
    """Return JSON with each item on a line of its own, indented by two spaces a level, and a space after each colon; none if too deep.

    >>> print(spread(b'{"a":[1,2],"b":{}}').decode())
    {
      "a": [
        1,
        2
      ],
      "b": {}
    }
    """
    out: list[bytes] = []
    level, is_first = 0, False
    for match in _TOKEN.finditer(data):
        token = match[0]
        if token in (b"}", b"]"):
            level = max(level - 1, 0)
        if is_first != (token in (b"}", b"]")):  # neither between an opening bracket and its closing one, nor elsewhere before a token
            out.append(b"\n" + b"  " * level)
        is_first = token in (b"{", b"[")
        level += is_first
        if level > _DEPTH:
            return None
        out.append(token)
        if token == b",":
            out.append(b"\n" + b"  " * level)
        elif token == b":":
            out.append(b" ")
    return b"".join(out)


def joined(data: bytes) -> bytes:
    """Return JSON without the spaces and line ends between its tokens."""
    return b"".join(match[0] for match in _TOKEN.finditer(data))
