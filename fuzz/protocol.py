"""What a target is: seeds, a way to change them, and what must hold of each input."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from deltapack.errors import DeltapackError
from fuzz.bundles import Bundle

__all__ = ["Finding", "Scratch", "Target", "modules", "outcome_of"]


class Finding(AssertionError):
    """Something that must hold does not. Its first line tells findings apart."""


@dataclass
class Scratch:
    """A folder that a run may write to, and what it reached.

    Attributes:
        folder: The folder; `inputs` in it holds the input and must stay as it is.
        labels: What the run came to, step by step.
    """

    folder: Path
    labels: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> Path:
        """Where the files of the input are."""
        return self.folder / "in"

    def attempt(self, step: str, act: Callable[..., Any], *args: Any, **options: Any) -> tuple[bool, Any]:
        """Do something that may be refused by an error of deltapack.

        Returns:
            Whether it was done, and what it returned, or the error.
        """
        try:
            result = act(*args, **options)
        except DeltapackError as error:
            with suppress(UnicodeError):
                str(error).encode()
            self.labels.append(f"{step}: {outcome_of(error)}")
            return False, error
        self.labels.append(f"{step}: done")
        return True, result

    def note(self, label: str) -> None:
        """Add a label."""
        self.labels.append(label)


_SPECIFIC = re.compile(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|0x[0-9a-f]+|[0-9][0-9a-f.,]*")


def outcome_of(error: BaseException) -> str:
    """The kind of an error: its class, its rule and what it says, without what is particular to one input."""
    rule = getattr(error, "rule", None)
    what = str(getattr(error, "what", error))[:300]
    return f"{type(error).__name__}{f' {rule}' if rule else ''}: {_SPECIFIC.sub('~', what)[:60]}"


def modules(room: str, names: str) -> tuple[str, ...]:
    """The names of modules of a room of deltapack.

    >>> modules("format", "reader table")
    ('deltapack.format.reader', 'deltapack.format.table')
    """
    return tuple(f"deltapack.{room}.{name}" for name in names.split())


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        name: On the command line.
        about: What is fuzzed, in a line.
        seeds: Makes the first inputs; it may use the folder given.
        change: Returns another input.
        check: What must hold: runs an input whose files lie in `scratch.inputs`, raises `Finding` or an error that is not of deltapack.
        rooms: Modules of deltapack of which coverage is told.
        reached: The beginning of a label that says that an input got past the first check.
        slow: Whether an input takes so long that budgets are a tenth.
    """

    name: str
    about: str
    seeds: Callable[[Path], Sequence[Bundle]]
    change: Callable[[Bundle, Random], Bundle]
    check: Callable[[Scratch], None]
    rooms: tuple[str, ...]
    reached: str
    slow: bool = False
