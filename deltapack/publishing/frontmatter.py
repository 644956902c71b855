"""The front matter of a card: completed in place, so that what its author wrote stays as it was, comments and all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltapack.merging.basecard import FRONT, front_of
from deltapack.merging.cardtext import dump_yaml

__all__ = ["completed", "with_front"]


def with_front(front: Mapping[str, Any], body: str) -> str:
    """Return a card of front matter and text."""
    return f"---\n{dump_yaml(dict(front))}---\n\n{body}"


def completed(card: bytes, wanted: Mapping[str, Any], path: Path) -> str:
    r"""Return a card whose front matter has these entries; everything else of it stays as it was, byte for byte.

    >>> print(completed(b"---\nlicense: mit  # as the base\n---\nMine.", {"library_name": "deltapack"}, Path("README.md")))
    ---
    license: mit  # as the base
    library_name: deltapack
    ---
    Mine.

    Args:
        card: The card, UTF-8.
        wanted: Entries to add, or to put in the place of those of their names.
        path: What messages name.

    Raises:
        RecipeError: Its front matter cannot be read.
    """
    front, found = front_of(card, path), FRONT.match(card)
    changed = {key: value for key, value in wanted.items() if front.get(key) != value or key not in front}
    if not changed:
        return card.decode("utf-8", "replace")
    if found is None:
        return with_front(changed, card.decode("utf-8-sig", "replace"))
    text = found[1].decode("utf-8")
    new = _spliced(text, changed) if front else dump_yaml(changed).rstrip("\n")
    return card[: found.start(1)].decode("utf-8") + new + card[found.end(1) :].decode("utf-8", "replace")


def _spliced(text: str, changed: Mapping[str, Any]) -> str:
    """Return the YAML of a mapping with some of its entries replaced, and new ones at its end."""
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root.flow_style or any(key.start_mark.column for key, _ in root.value):  # `{a: b}`, all of it indented, or `? key`
        return dump_yaml(yaml.safe_load(text) | dict(changed)).rstrip("\n")
    places = {key.value: (key.start_mark.index, _end(value)) for key, value in root.value}
    out = text
    for key in sorted(changed.keys() & places.keys(), key=lambda key: places[key], reverse=True):
        start, end = places[key]
        out = out[:start] + dump_yaml({key: changed[key]}).rstrip("\n") + out[end:]
    added = {key: value for key, value in changed.items() if key not in places}
    return f"{out.rstrip()}\n{dump_yaml(added)}".rstrip("\n") if added else out


def _end(node: Any) -> int:
    """Return where a node ends: a block by its last item, as its own mark is past the comments that follow it."""
    if isinstance(node.value, list) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
