"""YAML as a recipe may use it: no duplicate keys, no aliases, plain types only; every complaint names file and key."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltapack.errors import RecipeError, did_you_mean
from deltapack.sources.whole import read_small

__all__ = ["Node", "parse_yaml", "read_yaml"]

_LARGEST = 1 << 20


@dataclass(frozen=True)
class Node:
    """A value of a YAML file and where it is, such as `models[1].parameters.weight`."""

    path: Path
    key: str
    value: Any

    def error(self, what: str, *, expected: object = None, hint: str | None = None) -> RecipeError:
        """Return an error about this value."""
        return RecipeError(f"{self.key or 'the file'}: {what}", path=self.path, expected=expected, found=_short(self.value), hint=hint)

    def mapping(self, known: tuple[str, ...], refused: dict[str, str] | None = None) -> dict[str, Node]:
        """Return the entries of a mapping; `None` counts as empty.

        Args:
            known: Keys that it may have.
            refused: Keys that people use elsewhere, and why they are not supported.

        Raises:
            RecipeError: It is no mapping, or has another key.
        """
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error("is not a mapping", expected="keys and values")
        out = {}
        for key, value in self.value.items():
            node = Node(self.path, f"{self.key}.{key}" if self.key else str(key), value)
            if key in (refused or {}):
                raise RecipeError(f"{node.key} is not supported: {(refused or {})[key]}", path=self.path)
            if key not in known:
                raise RecipeError(
                    f"{node.key} is unknown", path=self.path, expected="one of " + ", ".join(known), hint=did_you_mean(key, known)
                )
            out[key] = node
        return out

    def items(self) -> Iterator[Node]:
        """Yield the items of a list.

        Raises:
            RecipeError: It is no list.
        """
        if not isinstance(self.value, list):
            raise self.error("is not a list", expected="a list")
        for number, value in enumerate(self.value):
            yield Node(self.path, f"{self.key}[{number}]", value)

    def text(self) -> str:
        """Return a string.

        Raises:
            RecipeError: It is none.
        """
        if not isinstance(self.value, str):
            raise self.error("is not a text", expected="a text")
        return self.value

    def number(self) -> float:
        """Return a number; YAML reads `1e-3` as a text, so that is one, too.

        Raises:
            RecipeError: It is none.
        """
        try:
            if isinstance(self.value, bool) or not isinstance(self.value, (int, float, str)):
                raise ValueError
            return float(self.value)
        except (ValueError, OverflowError) as error:
            raise self.error("is not a number", expected="a number") from error

    def flag(self) -> bool:
        """Return a truth value; 0 and 1 count.

        Raises:
            RecipeError: It is none.
        """
        if self.value not in (0, 1):
            raise self.error("is not a yes or no", expected="true or false")
        return bool(self.value)


def read_yaml(path: Path) -> Node:
    """Read a file.

    Raises:
        RecipeError: It cannot be read, is not YAML, or uses more of YAML than a recipe may.
    """
    try:
        data = read_small(path, _LARGEST)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RecipeError("the recipe is too large", path=path, expected=f"at most {_LARGEST:,} bytes") from error
        raise RecipeError(f"the recipe cannot be read: {error.strerror or error}", path=path) from error
    return parse_yaml(data, path)


def parse_yaml(data: bytes, path: Path) -> Node:
    """Parse the bytes of a file.

    Raises:
        RecipeError: They are too many, not YAML, or use more of YAML than a recipe may.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses duplicate keys and aliases, which can make a small file huge."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise RecipeError(
                    "aliases are not supported", path=path, hint=f"Write it out (line {self.peek_event().start_mark.line + 1})."
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                line = f"line {key_node.start_mark.line + 1}"
                if not isinstance(key, str):
                    raise RecipeError(f"a key is not a text ({line})", path=path, found=_short(key))
                if key in seen:
                    raise RecipeError(f"{key} is there twice ({line})", path=path)
                seen.add(key)
            return super().construct_mapping(node, deep=True)

    if len(data) > _LARGEST:
        raise RecipeError("the recipe is too large", path=path, expected=f"at most {_LARGEST:,} bytes")
    try:
        return Node(path, "", yaml.load(data, Loader))
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise RecipeError(f"the recipe is not YAML: {text[:200] or type(error).__name__}", path=path) from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
