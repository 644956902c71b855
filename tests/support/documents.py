"""The blocks of code of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
