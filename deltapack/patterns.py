"""Regular expressions of users and of files: each is bounded in length, and all that one call tries in time.

Python's `re` backtracks, and holds the interpreter while it does: `(a+)+$` against forty letters never ends, and no thread can
stop it. An engine of linear time knows another language (no look-around), and would be one more library. So what an expression may cost
is computed from its text, which takes nothing; what is cheap for all names runs at once, as nearly all do; anything else is first tried
in a process of its own (30 ms) whose processor time is limited, and refused where that is not enough.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from deltapack.errors import RecipeError

__all__ = ["LONGEST", "SECONDS", "How", "check_pattern", "check_patterns", "work"]

How = Literal["fullmatch", "match", "search"]
"""Whether the whole name has to match, its beginning, or some part of it."""

LONGEST = 4096
"""Characters that an expression may have."""
SECONDS = 2
"""Processor time that the expressions of one call may take for all names together."""
_WALL = 60
"""Seconds that the process may take by the clock, where many share the machine."""
_CHEAP = 1e8
"""Steps that are made without asking; Python makes 5e7 to 2e8 a second."""

_OPTIONS = re.compile(r"\(\?[a-zA-Z]*[a-zA-Z](?:-[a-zA-Z]*)?[:)]")
_ESCAPED = re.compile(r"\\(?:([1-9])|.)", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")


def check_pattern(pattern: object, path: Path | None = None) -> None:
    """Require that a pattern, if there is one, is a regular expression, not too long, and soon understood.

    Args:
        pattern: The expression; `None` for none.
        path: The file that it is from.

    Raises:
        RecipeError: It is none, or takes too long.
    """
    if pattern is None:
        return
    if not isinstance(pattern, str):
        raise RecipeError("a regular expression is not a text", path=path, found=repr(pattern)[:60])
    if len(pattern) > LONGEST:
        found = f"{len(pattern):,}"
        raise RecipeError("a regular expression is too long", path=path, expected=f"at most {LONGEST:,} characters", found=found)
    if _OPTIONS.search(pattern) and "[" in pattern:  # `(?i)` walks through all characters of a class
        _try_apart([(pattern, "search")], (), path)
    try:
        pattern.encode()  # a pack states it in UTF-8
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that a later Python may read "[[" in another way; `re` keeps what it compiled
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, UnicodeError) as error:
        raise RecipeError(f"a regular expression is wrong: {error}", path=path, found=f"'{pattern}'") from error


def check_patterns(uses: Iterable[tuple[str | None, How]], names: Collection[str], path: Path | None = None) -> None:
    """Require that expressions, tried on names, take no longer than they may; afterwards `re` may be used on those names.

    Args:
        uses: Expressions, and how they are used; `None` is left out.
        names: All names that they will be tried on.
        path: The file that they are from.

    Raises:
        RecipeError: One is no regular expression, or they take too long.
    """
    asked: list[tuple[str, How]] = [(pattern, how) for pattern, how in dict.fromkeys(uses) if pattern is not None]
    if not asked:
        return
    for pattern, _ in asked:
        check_pattern(pattern, path)
    lengths: dict[int, int] = {}
    for name in names:
        lengths[len(name)] = lengths.get(len(name), 0) + 1
    if sum(work(pattern, how, lengths.items()) for pattern, how in asked) > _CHEAP:
        _try_apart(asked, names, path)


def work(pattern: str, how: How, lengths: Iterable[tuple[int, int]]) -> float:
    """Return a bound on the steps that an expression takes: its parts, times the ways to split a name among its repetitions.

    >>> work("model.layers.[0-9]+.*", "fullmatch", [(40, 300)]) < 2e7, work("(a+)+$", "search", [(40, 1)])
    (True, inf)

    Args:
        pattern: A valid expression.
        how: How it is used.
        lengths: Lengths of names, and how many names have each.
    """
    if any("x" in options.group() for options in _OPTIONS.finditer(pattern)) or "(?#" in pattern:
        return float("inf")  # white space and comments hide what a repetition repeats
    plain = _CLASS.sub("c", _ESCAPED.sub(lambda found: "\0" if found[1] else "c", pattern))
    if _REPEATED_GROUP.search(plain):
        return float("inf")
    repeats = sum(plain.count(sign) for sign in "*+{\0") + plain.count("(?P=") + (how == "search")
    parts, lengths = float(len(pattern) + 1) * _ways(plain), list(lengths)
    try:
        return sum(parts * count * float(length + 1) ** repeats for length, count in lengths)
    except OverflowError:
        return float("inf")


def _ways(plain: str) -> float:
    """Return how many ways lead through alternatives and optional parts."""
    product, alternatives = 1.0, [1]
    for before, letter in zip(" " + plain, plain, strict=False):
        if letter == "(":
            alternatives.append(1)
        elif letter == "|":
            alternatives[-1] += 1
        elif letter == ")" and len(alternatives) > 1:
            product *= alternatives.pop()
        elif letter == "?" and before != "(":
            product *= 2
    for left in alternatives:
        product *= left
    return product


_PROGRAM = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
except (ImportError, OSError, ValueError):
    pass
uses, names = json.load(sys.stdin.buffer)
for number, (pattern, how) in enumerate(uses):
    print(number, flush=True)
    try:
        tried = getattr(re.compile(pattern), how)
        for name in names:
            tried(name)
    except (re.error, OverflowError, RecursionError, UnicodeError):
        pass
"""


def _try_apart(uses: Sequence[tuple[str, How]], names: Collection[str], path: Path | None) -> None:
    """Try expressions in a process of its own, whose time is limited. Raises as `check_patterns`."""
    import json

    asked = json.dumps([uses, list(names)]).encode()
    # An interpreter that reads no settings and no packages: it begins at once, and nothing of this process is in it.
    command = [sys.executable or "python3", "-I", "-S", "-W", "ignore", "-c", _PROGRAM]
    try:
        done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_WALL, check=False)
        out, failed = done.stdout, done.returncode != 0
    except subprocess.TimeoutExpired as error:
        out, failed = error.stdout or b"", True
    except OSError as error:
        hint = "Write it without repeated groups, or name fewer tensors with it."
        what = f"a regular expression that may take long cannot be tried in a process of its own: {error.strerror or error}"
        raise RecipeError(what, path=path, found=f"'{uses[0][0]:.200}'", hint=hint) from error
    if failed:
        reached = int(out.split()[-1]) if out.split() else 0
        raise RecipeError(
            "a regular expression takes too long",
            path=path,
            expected=f"at most {SECONDS} seconds for {len(names):,} names",
            found=f"'{uses[reached][0]:.200}'",
            hint="Repeat nothing that repeats itself, such as (a+)+, and use fewer .* in one expression.",
        )
