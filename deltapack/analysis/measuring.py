"""What `evaluate` and `tune` measure with: a text and models of it, or a program; one after the other, within a bound of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack.analysis.scoring import Score, Scorer, restored, scorer_of
from deltapack.analysis.texts import config_number, read_text, tokenize, windows_of
from deltapack.checking import as_count, as_path
from deltapack.errors import RecipeError
from deltapack.reports import Progress

if TYPE_CHECKING:
    from deltapack.analysis.judging import Measured, Reference
    from deltapack.analysis.models import BaseModel, Place

__all__ = ["Asked", "Judge", "Value", "open_judge", "retention_of"]


@dataclass(frozen=True)
class Value:
    """What was measured of one model: a loss (and what goes with it), or a score.

    Attributes:
        number: Loss in nats a token, or the score.
        kl: Mean KL divergence from the fine-tune's predictions, in nats a token.
        agreement: Share of tokens whose likeliest next one is the fine-tune's.
        losses: `[windows]`, where a text was read.
    """

    number: float
    kl: float | None = None
    agreement: float | None = None
    losses: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Asked:
    """How models are measured; the arguments that `evaluate` and `tune` share, checked.

    Raises:
        RecipeError: One is out of range, or not exactly one of text and score is given.
    """

    text: str | Path | None
    score: Score | None
    tokens: int
    window: int
    device: Any
    dtype: str
    reference_bytes: int
    workers: int | None
    progress: Progress | None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.score is None):
            found = "neither" if self.text is None else "both"
            raise RecipeError("models are measured either on a text or by a score", expected="one of --text and --eval", found=found)
        for name, least in (("tokens", 32), ("window", 2), ("reference_bytes", 1)):
            if as_count(name, getattr(self, name)) < least:
                raise RecipeError(f"{name} is out of range", expected=f"at least {least:,}", found=getattr(self, name))


class Judge(Protocol):
    """Measures the base and packs on it, and before them the fine-tune."""

    unit: int
    """Work of one measurement, for progress."""

    def finetuned(self, folder: Path) -> Value:
        """Measure a fine-tune, whose predictions then are what others are compared with."""

    def base(self) -> Value:
        """Measure the base."""

    def pack(self, path: Path, *, verify: bool = True) -> Value:
        """Measure what a pack makes of the base."""


def open_judge(base: Path, asked: Asked, finetuned: Path | None, models: int) -> AbstractContextManager[Judge]:
    """Open what measures.

    Args:
        base: The base.
        asked: How to measure.
        finetuned: The fine-tune, whose tokenizer counts; the base's without.
        models: How many models will be measured at most, for progress.

    Raises:
        BackendError: transformers or the device is missing.
        RecipeError: The text is too short, or has no tokenizer; the score is no command.
    """
    if asked.score is not None:
        return _by_score(base, scorer_of(asked.score), asked, models)
    return _on_text(base, asked, finetuned, models)


@contextmanager
def _by_score(base: Path, scorer: Scorer, asked: Asked, models: int) -> Iterator[Judge]:
    yield _Program(base, scorer, asked, _Counter(models, asked.progress))


@contextmanager
def _on_text(base: Path, asked: Asked, finetuned: Path | None, models: int) -> Iterator[Judge]:
    from deltapack.analysis.models import Place

    folders = [folder for folder in (finetuned, base) if folder is not None]
    for folder in folders:
        _refuse_file(folder)
    place = Place.of(asked.device, asked.dtype)
    text = as_path("text", asked.text)
    known = [config_number(folder, "vocab_size") for folder in folders]
    ids = tokenize(read_text(text), folders, min((size for size in known if size is not None), default=1 << 31))
    longest = min(
        filter(None, (config_number(folder, "max_position_embeddings", "n_positions") for folder in folders)), default=asked.window
    )
    windows = windows_of(ids, max(2, min(asked.window, longest)), asked.tokens, text)
    judge = _Reader(base, asked, windows, place, _Counter(models * windows.size, asked.progress))
    try:
        yield judge
    finally:
        judge.close()


def _refuse_file(path: Path) -> None:
    if not path.is_dir():
        hint = "Measure it with --eval 'python my.py {model}' (score=), which takes any program."
        raise RecipeError("a text is for folders of transformers models", path=path, expected="a folder", hint=hint)


@dataclass
class _Counter:
    """Adds up work and tells it."""

    total: int
    progress: Progress | None
    done: int = 0

    def add(self, work: int) -> None:
        self.done = min(self.done + work, self.total)
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass
class _Program:
    """Gives each model to a program as a checkpoint."""

    where: Path
    scorer: Scorer
    asked: Asked
    counter: _Counter
    unit: int = 1

    def finetuned(self, folder: Path) -> Value:
        return self._counted(folder)

    def base(self) -> Value:
        return self._counted(self.where)

    def pack(self, path: Path, *, verify: bool = True) -> Value:
        with restored(self.where, path, self.asked.workers, verify=verify) as folder:
            return self._counted(folder)

    def _counted(self, folder: Path) -> Value:
        value = Value(self.scorer(folder))
        self.counter.add(1)
        return value


class _Reader:
    """Lets models read windows of a text; the fine-tune's is gone before the base's is loaded."""

    def __init__(self, base: Path, asked: Asked, windows: NDArray[np.int64], place: Place, counter: _Counter) -> None:
        self.unit = windows.size
        self._base, self._asked, self._windows, self._place, self._counter = base, asked, windows, place, counter
        self._reference: Reference | None = None
        self._opened: BaseModel | None = None
        self._scope: AbstractContextManager[BaseModel] | None = None

    def finetuned(self, folder: Path) -> Value:
        from deltapack.analysis.judging import Reference, measure
        from deltapack.analysis.models import load_language_model

        kept = Reference(self._asked.reference_bytes)
        model = self._place.ready(load_language_model(folder))
        found = measure(model, self._windows, folder, self._counter.add, keep=kept)
        self._reference = kept
        return _value(found)

    def base(self) -> Value:
        return self._measured(self._model().shown, self._base)

    def pack(self, path: Path, *, verify: bool = True) -> Value:
        with self._model().with_pack(path, verify=verify) as model:
            return self._measured(model, path)

    def close(self) -> None:
        if self._scope is not None:
            self._scope.__exit__(None, None, None)
            self._scope = self._opened = None

    def _measured(self, model: Any, where: Path) -> Value:
        from deltapack.analysis.judging import measure

        return _value(measure(model, self._windows, where, self._counter.add, beside=self._reference))

    def _model(self) -> BaseModel:
        if self._opened is None:
            from deltapack.analysis.models import open_base_model

            self._scope = open_base_model(self._base, self._place, self._asked.workers)
            self._opened = self._scope.__enter__()
        return self._opened


def _value(found: Measured) -> Value:
    return Value(found.loss, found.kl, found.agreement, found.losses)


def retention_of(value: Value, base: Value, finetuned: Value) -> tuple[float | None, float | None]:
    """Return how much of the fine-tune's gain over the base a model keeps, and the standard error of that over the windows of a text.

    None where the fine-tune has no gain to speak of, below three standard errors, or none at all.

    >>> retention_of(Value(2.25), Value(3.0), Value(2.0))
    (0.75, None)
    """
    gain = base.number - finetuned.number
    if value.losses is None or base.losses is None or finetuned.losses is None:
        return (None if gain == 0 else (base.number - value.number) / gain + 0.0), None
    gains, count = base.losses - finetuned.losses, len(base.losses)
    error = float(gains.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if gain <= 3 * error or gain <= 0:
        return None, None
    kept = (base.number - value.number) / gain + 0.0  # of the base itself 0, not -0
    rest = base.losses - value.losses - kept * gains
    return kept, float(rest.std(ddof=1)) / math.sqrt(count) / gain if count > 1 else None
