"""Text of model cards that holds what others wrote: YAML whose lines no name can end, Markdown that shows names as they are."""

from __future__ import annotations

from typing import Any

__all__ = ["dump_yaml", "plain"]


def dump_yaml(document: Any) -> str:
    """Return YAML in which every text is on one line, so that no name can end the front matter or the block it is in."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Escapes what is not printable."""

    def represent(dumper: Any, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    Dumper.add_representer(str, represent)
    return str(yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=float("inf")))


def plain(text: str) -> str:
    """Return text that Markdown shows as it is: packs may come from anyone."""
    return "".join(char if char.isprintable() and char not in "`|<>[]" else "?" for char in text)
