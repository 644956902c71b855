"""Models measured by a program or a function of the user's, which get a checkpoint each."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltapack.checking import as_number
from deltapack.errors import NonFiniteError, RecipeError
from deltapack.restoring.applying import apply
from deltapack.sources.locks import scratch

__all__ = ["Score", "Scorer", "restored", "scorer_of"]

Score = str | Callable[[Path], Any]
"""A command with `{model}` in it that prints a number as its last word, or a function from a checkpoint's path to a number."""

_MODEL = "{model}"
_TOLD = 300


@dataclass(frozen=True)
class Scorer:
    """Gives checkpoints numbers.

    Attributes:
        score: What the user gave.
        words: The command, word by word; empty of a function.
    """

    score: Score
    words: tuple[str, ...] = ()

    def __call__(self, model: Path) -> float:
        """Return the number of a checkpoint.

        Raises:
            NonFiniteError: It is NaN or infinite.
            RecipeError: The command fails or prints no number, or the function returns none.
        """
        found = self._asked(model)
        if not math.isfinite(found):
            raise NonFiniteError("the score of the model is not a finite number", path=model, found=found)
        return found

    def _asked(self, model: Path) -> float:
        if callable(self.score):
            return as_number("the score", self.score(model), path=model)
        words = [word.replace(_MODEL, str(model)) for word in self.words]
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            hint = "It runs without a shell; for pipes and variables write --eval 'sh -c \"...\"'."
            raise RecipeError(f"the --eval command cannot be run: {error.strerror}", path=model, found=words[0], hint=hint) from error
        if done.returncode:
            found = f"exit code {done.returncode}; {_tail(done.stderr) or _tail(done.stdout) or 'no output'}"
            raise RecipeError("the --eval command failed", path=model, expected="exit code 0", found=found, hint=f"It was: {self.score}")
        last = (done.stdout.split() or [""])[-1]
        try:
            return float(last)
        except ValueError:
            expected, found = "a number as the last word of its output", _tail(done.stdout) or "no output"
            hint = f"It was: {self.score}"
            raise RecipeError("the --eval command printed no number", path=model, expected=expected, found=found, hint=hint) from None


def scorer_of(score: Score) -> Scorer:
    """Check what the user gave.

    Raises:
        RecipeError: It is neither a function nor a command with `{model}`.
    """
    if callable(score):
        return Scorer(score)
    expected = "a command such as 'python my.py {model}', or a function of a path"
    if not isinstance(score, str):
        raise RecipeError("score is neither a command nor a function", expected=expected, found=repr(score)[:60])
    try:
        words = tuple(shlex.split(score))
    except ValueError as error:
        raise RecipeError(f"the --eval command cannot be read: {error}", expected=expected, found=score) from error
    if not any(_MODEL in word for word in words):
        raise RecipeError("the --eval command does not say where the model goes", expected=expected, found=repr(score))
    return Scorer(score, words)


@contextmanager
def restored(base: Path, pack: Path, workers: int | None, *, verify: bool = True) -> Iterator[Path]:
    """Restore a pack into a temporary folder, or file where the base is one, for as long as the block runs.

    Raises:
        DeltapackError: As `deltapack.apply`.
    """
    with scratch() as folder:
        out = folder / ("model" if base.is_dir() else "model.safetensors")
        apply(base, pack, out, verify=verify, workers=workers)
        yield out


def _tail(text: str) -> str:
    """Return the end of what a program printed, as one line."""
    return " ".join(text.split())[-_TOLD:]
