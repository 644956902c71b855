"""Which files a web server says are in a folder: the pages that servers make of folders, and lists in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from deltapack.sources.urls import is_plain_name

__all__ = ["MOST_BYTES", "MOST_NAMES", "WELL_KNOWN", "names_of_page"]

MOST_BYTES, MOST_NAMES = 4 << 20, 10_000
WELL_KNOWN = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "README.md",
    "LICENSE",
)
"""Looked for one by one in a folder that the server does not list."""


def names_of_page(data: bytes, content_type: str, address: str) -> dict[str, bool]:
    """Return the names in a folder, each with whether it is a folder; names that are none are left out.

    Args:
        data: What the server answers for the folder.
        content_type: What it says that this is.
        address: Where it came from, against which links are read.
    """
    kind = content_type.partition(";")[0].strip().lower()
    text = data.decode("utf-8", "replace")
    found = _of_json(text) if kind.endswith("json") else _of_links(text, address) if "html" in kind else ()
    names: dict[str, bool] = {}
    for name, is_folder in found:
        if is_plain_name(name) and not set(name) & set("%?#") and len(names) < MOST_NAMES:
            names[name] = is_folder
    return names


def _of_json(text: str) -> Iterator[tuple[str, bool]]:
    """Yield what a list in JSON names: texts, or objects with `name` and `type`, as nginx and Caddy write them."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return
    for row in rows if isinstance(rows, list) else ():
        name = row.get("name") if isinstance(row, dict) else row
        if isinstance(name, str):
            is_folder = name.endswith("/") or (isinstance(row, dict) and (row.get("type") == "directory" or row.get("is_dir") is True))
            yield name.removeprefix("./").rstrip("/"), is_folder


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value] if len(self.found) < MOST_NAMES else []


def _of_links(text: str, address: str) -> Iterator[tuple[str, bool]]:
    """Yield what the links of a page name that lead right below its own address."""
    parser = _Links()
    parser.feed(text)
    own = urlsplit(address)
    for link in parser.found:
        try:
            target = urlsplit(urljoin(address, link))
        except ValueError:
            continue
        if target.query or target.fragment or (target.scheme, target.netloc) != (own.scheme, own.netloc):
            continue
        rest = target.path.removeprefix(own.path)
        if rest != target.path and rest:
            yield unquote(rest.removesuffix("/")), rest.endswith("/")
