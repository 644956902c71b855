"""What a terminal can show: its width, whether it has colours, and tables made to fit it.

Where output goes to a file or a pipe nothing is fitted and nothing is coloured: what programs read stays as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TextIO

__all__ = ["columns_of", "fitted", "has_colours", "shortened"]

_NARROWEST = 20
"""Columns below which names say nothing; a table is then wider than the terminal."""
_NAME = 32
"""Columns that a name is given before a column beside it has to go."""
_GAP = 2


def columns_of(stream: TextIO) -> int | None:
    """Return how many columns a terminal has; None where the stream is none, and lines may be as long as they like."""
    return max(shutil.get_terminal_size().columns, _NARROWEST) if stream.isatty() else None


def has_colours(stream: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Return whether a stream gets colours: by `NO_COLOR` not, by `FORCE_COLOR` so, else as a terminal that is not dumb."""
    given = os.environ if environment is None else environment
    if given.get("NO_COLOR"):
        return False
    return bool(given.get("FORCE_COLOR")) or (stream.isatty() and given.get("TERM") != "dumb")


def shortened(text: str, width: int) -> str:
    """Return text of at most `width` characters; what is left out is its middle, as names differ at their ends.

    >>> shortened("model.layers.0.mlp.up_proj.weight", 20)
    'model.l…_proj.weight'
    """
    if len(text) <= width:
        return text
    front = max(0, (width - 1) * 2 // 5)
    return f"{text[:front]}…{text[len(text) - (width - 1 - front) :]}"


def fitted(lines: Sequence[Sequence[str]], width: int, drop: Sequence[str] = ()) -> tuple[list[list[str]], list[str]]:
    """Make a table fit a width: columns go, in a stated order, and then the first one is shortened.

    Args:
        lines: The header, then the rows.
        width: Columns that there are for all of it.
        drop: Titles of columns that may go, the least needed first.

    Returns:
        The lines that are left, and the titles of the columns that are gone, in the order of the table.
    """
    titles = list(lines[0])
    widths = dict(zip(titles, (max(map(len, column)) for column in zip(*lines, strict=True)), strict=True))
    gone: list[str] = []
    for title in drop:
        if _whole(widths) - widths[titles[0]] + min(widths[titles[0]], _NAME) <= width:
            break
        del widths[title]
        gone.append(title)
    room = max(width - (_whole(widths) - widths[titles[0]]), _NARROWEST)
    left = [[cell for title, cell in zip(titles, line, strict=True) if title in widths] for line in lines]
    return [[shortened(line[0], room), *line[1:]] for line in left], [title for title in titles if title in gone]


def _whole(widths: Mapping[str, int]) -> int:
    """Return the width of a table with its margin."""
    return sum(width + _GAP for width in widths.values())
