"""What a card of a merge takes over from its base: its name, and what the base's own card says that is still true."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltapack.checkpoint import Checkpoint
from deltapack.composing.assets import read_side_file
from deltapack.errors import RecipeError
from deltapack.merging.strict_yaml import parse_yaml
from deltapack.sources.remote_path import RemotePath

__all__ = ["CARD", "FRONT", "HubName", "base_front_matter", "front_of", "is_short", "kept_of", "name_of_base"]

CARD = "README.md"
FRONT = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
"""The front matter of a card; its YAML is the first group."""
_TEXTS = ("license", "license_name", "license_link", "pipeline_tag", "library_name")
_LONGEST = 200
_MOST = 200


@dataclass(frozen=True)
class HubName:
    """A name of a model, and its revision on the hub where it is from there."""

    name: str
    revision: str = ""


def name_of_base(path: Path) -> HubName:
    """Return what the hub calls a base that lies in its cache (`models--org--name/snapshots/REV`), else its folder or file name.

    >>> name_of_base(Path("/cache/models--org--some-7b/snapshots/0a1b"))
    HubName(name='org/some-7b', revision='0a1b')
    >>> name_of_base(Path("/models/base-7b/model.safetensors"))
    HubName(name='model.safetensors', revision='')
    """
    if isinstance(path, RemotePath):
        return HubName(str(path))
    typed, real = Path(os.path.abspath(path)), path.resolve()
    for place in (typed, real):
        for folder, snapshots, revision in zip(place.parts, place.parts[1:], place.parts[2:], strict=False):
            if folder.startswith("models--") and snapshots == "snapshots":
                return HubName(folder.removeprefix("models--").replace("--", "/", 1), revision)
    # A file of a cache may be a link to a blob that is called by its digest; a folder's link is called as its owner likes.
    return HubName(real.name if real.is_dir() else typed.name)


def base_front_matter(base: Checkpoint) -> Mapping[str, Any]:
    """Return licence, languages, pipeline tag and library of a base's card, as far as they can be read.

    The card may be anyone's, and a merge does not fail for it: what is no short text is left out.
    """
    try:
        return kept_of(front_of(read_side_file(base, None, CARD) or b"", base.path / CARD))
    except RecipeError:
        return {}


def front_of(card: bytes, path: Path) -> Mapping[str, Any]:
    """Return the front matter of a card; nothing where it has none, or another thing than keys and values.

    Raises:
        RecipeError: It is not YAML, or uses more of YAML than a recipe may.
    """
    found = FRONT.match(card)
    front = parse_yaml(found[1], path).value if found else None
    return front if isinstance(front, dict) else {}


def kept_of(front: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what of a base's front matter is still true of what was made of it, as far as it is short text."""
    kept: dict[str, Any] = {key: front[key] for key in _TEXTS if is_short(front.get(key))}
    languages = front.get("language")
    listed = [languages] if isinstance(languages, str) or languages is False else languages
    if isinstance(listed, list):
        listed = ["no" if language is False else language for language in listed]  # what YAML makes of Norwegian
    if isinstance(listed, list) and 0 < len(listed) <= _MOST and all(map(is_short, listed)):
        kept["language"] = list(dict.fromkeys(listed))
    return kept


def is_short(value: object) -> bool:
    """Whether this is a short text of one line."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()
