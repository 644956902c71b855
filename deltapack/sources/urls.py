"""Addresses of files on other machines: taken apart, checked, and shown without what is secret in them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

from deltapack.errors import RecipeError

__all__ = ["OBJECTS", "SCHEMES", "WEB", "Url", "address", "is_here", "is_plain_name", "is_url", "parse_url", "url_of_parts"]

WEB = ("https", "http")
"""Schemes of web servers."""
OBJECTS = ("s3", "gs", "memory")
"""Schemes that fsspec serves; `memory` is for tests."""
SCHEMES = (*WEB, *OBJECTS)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BAD = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_LONGEST = 255
_SECRETS: dict[str, tuple[str, str]] = {}
"""From the tag that stands for them in a path to user information and query; neither ever is part of a name."""


@dataclass(frozen=True)
class Url:
    """An address.

    Attributes:
        scheme: One of `SCHEMES`.
        host: Host and port, or bucket.
        parts: The path.
        user: `NAME:PASSWORD` for the host, or empty.
        query: What follows the `?`, for each request; empty without one.
    """

    scheme: str
    host: str
    parts: tuple[str, ...]
    user: str = ""
    query: str = ""

    def __str__(self) -> str:
        """Return the address without secrets."""
        return "/".join((f"{self.scheme}://{self.host}", *self.parts))

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def name(self) -> str:
        """Last part of the path; empty at the top."""
        return self.parts[-1] if self.parts else ""

    @property
    def full(self) -> str:
        """The address with its secrets, as it was given."""
        text = "/".join((f"{self.scheme}://{self.user + '@' if self.user else ''}{self.host}", *self.parts))
        return f"{text}?{self.query}" if self.query else text

    @property
    def key(self) -> str:
        """What an object store calls it: bucket and key."""
        return "/".join((self.host, *self.parts))

    def request(self, *, folder: bool = False) -> str:
        """Return what a web server is asked for: characters are quoted, the user left out (it is a header); `folder` ends in a slash."""
        path = "/".join(("", *(quote(part, safe="%:@!$&'()*+,;=~") for part in self.parts))) + "/" * folder
        return f"{self.scheme}://{self.host}{path or '/'}" + (f"?{self.query}" if self.query else "")

    def child(self, name: str) -> Url:
        """Return the address of a file in this folder."""
        return replace(self, parts=(*self.parts, name))

    def pure(self) -> str:
        """Return the text that a path holds: secrets are replaced by a tag that stands for them in this process."""
        tag = ""
        if self.user or self.query:
            tag = "#" + hashlib.sha256(f"{self.user}\n{self.query}".encode()).hexdigest()[:16]
            _SECRETS[tag] = self.user, self.query
        return "/".join((f"{self.scheme}:{tag}", self.host, *self.parts))


def is_url(text: str) -> bool:
    """Whether a text is an address and no path.

    >>> is_url("s3://bucket/model"), is_url("models/base"), is_url("C:/models")
    (True, False, False)
    """
    return _SCHEME.match(text) is not None


def address(text: str) -> str:
    """Return an address as it may be shown: without user, password and query.

    >>> address("https://me:secret@example.org/base?token=hidden")
    'https://example.org/base'
    """
    scheme, mark, rest = text.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"[:200]


def parse_url(text: str) -> Url:
    """Take an address apart.

    >>> str(parse_url("https://me:secret@example.org/models/base/?token=hidden"))
    'https://example.org/models/base'

    Raises:
        RecipeError: It is of no scheme that is read, has no host, goes up (`..`), or is not protected and of another machine.
    """
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    plain = address(text)
    if scheme not in SCHEMES:
        expected = ", ".join(f"{name}://" for name in (*SCHEMES[:-1], "hf"))
        raise RecipeError("addresses of that kind are not read", expected=expected, found=f"{scheme}://")
    try:
        split = urlsplit(text) if scheme in WEB else urlsplit(text, allow_fragments=False)
        user, _, host = split.netloc.rpartition("@")
        path, query = (split.path, split.query) if scheme in WEB else (text[len(scheme) + 3 + len(split.netloc) :], "")
        port = split.port if scheme in WEB else None
    except ValueError as error:
        raise RecipeError("the address cannot be read", found=plain) from error
    if scheme in OBJECTS:
        user, host = "", split.netloc
    parts = tuple(path.strip("/").split("/")) if path.strip("/") else ()
    if not host or _BAD.search(text) or any(part in ("", ".", "..") for part in parts) or (port is not None and not port):
        expected = f"{scheme}://{'HOST' if scheme in WEB else 'BUCKET'}/PATH without '..' and empty parts"
        raise RecipeError("the address is none of a file or folder", expected=expected, found=repr(plain))
    url = Url(scheme, host, parts, user, query)
    if scheme == "http" and not is_here(text):
        hint = "Take https, whose answers nobody can change on their way, or download it first."
        raise RecipeError("http is read from this machine only", found=str(url), hint=hint)
    return url


def url_of_parts(parts: tuple[str, ...]) -> Url:
    """Return the address that the parts of a path stand for (`Url.pure`).

    Raises:
        RecipeError: They leave the place that the path began at.
    """
    scheme, _, tag = (parts[0] if parts else "").partition(":")
    if scheme not in SCHEMES or len(parts) < 2 or any(part in (".", "..") or _BAD.search(part) for part in parts):
        raise RecipeError("a name leads out of the place that it is in", found=repr("/".join(parts[1:]))[:200])
    user, query = _SECRETS.get(tag, ("", ""))
    return Url(scheme, parts[1], parts[2:], user, query)


def is_plain_name(name: str) -> bool:
    """Whether a name that a server tells may be one of a file or folder: no path, nothing that is not printed.

    >>> is_plain_name("model.safetensors"), is_plain_name("../model"), is_plain_name("..")
    (True, False, False)
    """
    plain = name not in ("", ".", "..") and "/" not in name and not _BAD.search(name) and name.isprintable()
    return plain and len(name.encode()) <= _LONGEST


def is_here(text: str) -> bool:
    """Whether the host of an address is this machine.

    >>> is_here("http://127.0.0.1:80/x"), is_here("http://localhost.example.org/x"), is_here("http://127.0.0.1@example.org/x")
    (True, False, False)
    """
    try:
        host = urlsplit(text).hostname or ""
    except ValueError:
        return False
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None
