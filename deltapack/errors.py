"""Every error that deltapack raises on purpose, one class per decision a caller makes.

    DeltapackError            1  anything below; catch this to catch all
    +-- RecipeError           2  the call itself is wrong: an option out of range, a bad regular expression
    +-- OutputError           1  the output exists, the disk is full, a file cannot be written
    +-- NonFiniteError        1  NaN or Inf where a lossy pack cannot represent it
    +-- MergeConflictError    1  packs disagree on something that cannot be added
    +-- HubError              1  the Hugging Face Hub refused, or cannot be reached
    +-- CheckpointError       3  a checkpoint is malformed or damaged
    |   +-- NotACheckpointError  5  this is something else than a checkpoint, and whole
    +-- FormatError           3  a pack breaks a rule of the format
    |   +-- ChecksumError     3  stored bytes do not match their checksum
    |   +-- NotAPackError     5  this is something else than a pack, and whole
    +-- BaseMismatchError     4  this is not the base that the pack was made from
    +-- ModelMismatchError    4  this is not the checkpoint that the pack restores
    +-- UnsupportedError      5  valid, but needs a feature that this build does not have
    +-- SourceError           1  a file of another machine cannot be read: the network, the server, the rights
    |   +-- InputChangedError    1  a file changed while it was read, here or elsewhere
    +-- BackendError          5  the backend or device that was asked for cannot run here
    +-- LimitError            6  would exceed a limit (see `deltapack.limits`)

The number is the exit code of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "BackendError",
    "BaseMismatchError",
    "CheckpointError",
    "ChecksumError",
    "DeltapackError",
    "FormatError",
    "HubError",
    "InputChangedError",
    "LimitError",
    "MergeConflictError",
    "ModelMismatchError",
    "NonFiniteError",
    "NotACheckpointError",
    "NotAPackError",
    "OutputError",
    "RecipeError",
    "SourceError",
    "UnsupportedError",
    "did_you_mean",
]


def did_you_mean(word: object, choices: Iterable[str]) -> str | None:
    """Return a sentence that names the choice that is spelled most like `word`; none where none is near.

    >>> did_you_mean("tie", ["ties", "linear"]), did_you_mean("drop_rat", ["drop-rate"]), did_you_mean("x", ["ties"])
    ('Did you mean ties?', 'Did you mean drop-rate?', None)
    """
    by_spelling = {choice.lower().replace("_", "-"): choice for choice in choices}
    near = difflib.get_close_matches(str(word).lower().replace("_", "-"), by_spelling, n=1)
    return f"Did you mean {by_spelling[near[0]]}?" if near else None


class DeltapackError(Exception):
    """Base class. The message names file, tensor, what is wrong, the rule and the way out, as far as they are given.

    >>> print(DeltapackError("cannot be read", path="a.dpk", tensor="x", expected=2, found=3, rule="R8", hint="Fetch it again."))
    a.dpk: tensor 'x': cannot be read: expected 2, found 3 (rule R8). Fetch it again.

    Args:
        what: What is wrong, in one clause.
        path: The file or folder at fault.
        tensor: The tensor at fault, by its name in that file.
        expected: What the reader expected.
        found: What it found instead.
        rule: The rule of `spec/04-reader-rules.md` that was broken, such as `"R7"`.
        hint: The way out, as a sentence.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        path: str | Path | None = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        rule: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.tensor = tensor
        self.expected = expected
        self.found = found
        self.rule = rule
        self.hint = hint

    def __str__(self) -> str:
        parts = [str(self.path)] if self.path is not None else []
        if self.tensor is not None:
            parts.append(f"tensor {self.tensor!r}")
        text = ": ".join([*parts, self.what])
        if self.expected is not None:
            text += f": expected {self.expected}"
        if self.found is not None:
            text += f"{',' if self.expected is not None else ':'} found {self.found}"
        if self.rule is not None:
            text += f" (rule {self.rule})"
        return f"{text}. {self.hint}" if self.hint else text


class RecipeError(DeltapackError):
    """An argument is out of range or contradicts another."""

    exit_code = 2


class OutputError(DeltapackError):
    """The output cannot be written: it exists, the disk is full, the folder is not ours to replace."""


class NonFiniteError(DeltapackError):
    """A NaN or an infinity where a lossy pack cannot represent it."""


class MergeConflictError(DeltapackError):
    """Packs disagree on a tensor or file that cannot be added, such as a new head."""


class HubError(DeltapackError):
    """The Hugging Face Hub refused what was asked of it, or cannot be reached."""


class CheckpointError(DeltapackError):
    """A checkpoint is malformed or damaged."""

    exit_code = 3


class NotACheckpointError(CheckpointError):
    """This is no checkpoint that can be read: an adapter, a GGUF file, a pack, an empty folder, nothing at all; it is not damaged."""

    exit_code = 5


class FormatError(DeltapackError):
    """A pack breaks a rule of the format."""

    exit_code = 3


class ChecksumError(FormatError):
    """Stored bytes do not match their checksum: the file was damaged after it was written."""


class NotAPackError(FormatError):
    """This is no pack: a checkpoint, a file of another kind, nothing at all; it is not a damaged pack."""

    exit_code = 5


class BaseMismatchError(DeltapackError):
    """The base given is not the base that the pack was made from."""

    exit_code = 4


class ModelMismatchError(DeltapackError):
    """The checkpoint given is not what the pack restores."""

    exit_code = 4


class UnsupportedError(DeltapackError):
    """The input is well formed but needs a feature that this build does not have."""

    exit_code = 5


class SourceError(DeltapackError):
    """A file of another machine cannot be read: the network, the server, missing rights, or it changed meanwhile."""


class InputChangedError(SourceError):
    """A file changed while it was read, here or on another machine: what was read of it does not belong together. Run again."""


class BackendError(DeltapackError):
    """The backend or device that was asked for cannot run on this machine."""

    exit_code = 5


class LimitError(DeltapackError):
    """Reading on would exceed a limit."""

    exit_code = 6
