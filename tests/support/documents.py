"""The blocks of code of a page, and what running them needs."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import deltapack

_REASON = re.compile(r"<!-- not run: (.*?) -->")
_KINDS = {"py": "python", "sh": "shell", "bash": "shell", "": "text"}
_ITEM = re.compile(r" {0,3}([*+-]|\d+\.) ")


@dataclass(frozen=True)
class Block:
    """A block: `"shell"` if it is indented, else by its fence; and why it is not run, if the page says so above it."""

    kind: str
    code: str
    reason: str | None


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page in order.

    A block is what stands between fences, or lines indented by four after an empty one, outside of lists.
    """
    lines = [*text.splitlines(), ""]
    at, above, in_list = 0, "", False
    while at < len(lines):
        line = lines[at]
        fence = re.fullmatch(r"```(\w*)", line)
        if fence or (line.startswith("    ") and line.strip() and not in_list and (not at or not lines[at - 1].strip())):
            at, code = _taken(lines, at, fenced=fence is not None)
            kind = _KINDS.get(fence[1], fence[1]) if fence else "shell"
            found = _REASON.fullmatch(above.strip())
            yield Block(kind, code, found[1] if found else None)
            above = ""
            continue
        if line.strip():
            above = line
            in_list = bool(_ITEM.match(line)) or (in_list and line.startswith("  "))
        at += 1


def _taken(lines: list[str], at: int, *, fenced: bool) -> tuple[int, str]:
    """Return where the text goes on after a block, and the block."""
    if fenced:
        end = lines.index("```", at + 1)
        return end + 1, "\n".join(lines[at + 1 : end]) + "\n"
    end = at
    while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
        end += 1
    return end, "\n".join(line[4:] for line in lines[at:end]).rstrip() + "\n"


class AtOnce(nullcontext[Any]):
    """An engine that does what it is given when it is asked for the result."""

    task_elements = 1

    def __init__(self, address: str | None) -> None:
        super().__init__(self)
        assert address is None or address == "auto" or ":" in address

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Generator[Any, None, None]:
        yield from map(function, tasks)


def make_room(words: list[str]) -> None:
    """Remove what a command is to write: readers have no such file yet."""
    for option in ("-o", "--html"):
        if option in words:
            out = Path(words[words.index(option) + 1])
            shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)


def names_are_there(tree: ast.AST) -> None:
    """What is imported from deltapack, and what is asked of `deltapack`, is there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltapack"):
            pytest.importorskip("torch")
            if "transformers" in (node.module or ""):
                pytest.importorskip("transformers")
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                found = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert found, ast.dump(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "deltapack":
            assert node.attr in deltapack.__all__ or importlib.util.find_spec(f"deltapack.{node.attr}"), node.attr
