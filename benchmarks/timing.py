"""Time several things in turns, A B C A B C, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.results import progress

__all__ = ["Candidate", "Rounds", "Sample", "interleave", "ratio"]


@dataclass(frozen=True)
class Candidate:
    """Something to time.

    Attributes:
        name: What it is called in the result.
        call: What is timed. Where it returns a float, that is its seconds, measured by itself.
        prepare: Called before each run, not timed.
    """

    name: str
    call: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Rounds:
    """How often.

    Attributes:
        fast: Runs of what takes less than `slow_seconds`, after a warm-up.
        slow: Runs of the rest.
        slow_seconds: From here on a run is slow.
        once_seconds: From here on the warm-up is the only run.
    """

    fast: int = 5
    slow: int = 3
    slow_seconds: float = 5.0
    once_seconds: float = 30.0

    def after(self, warm_up: float) -> int:
        """Return how many runs follow a warm-up of these seconds."""
        if warm_up >= self.once_seconds:
            return 0
        return self.slow if warm_up >= self.slow_seconds else self.fast


@dataclass(frozen=True)
class Sample:
    """Seconds of all runs in order, or the reason why there are none."""

    seconds: tuple[float, ...] = ()
    reason: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> str | None:
        """Fastest and slowest run."""
        return f"{min(self.seconds):.3g}..{max(self.seconds):.3g}" if self.seconds else None


@dataclass
class _Progress:
    """A candidate while it is being measured."""

    candidate: Candidate
    wanted: int = 0
    seconds: list[float] = field(default_factory=list)
    reason: str = ""

    def run(self) -> float | None:
        """Run once and return the seconds; after a failure, never again."""
        try:
            self.candidate.prepare()
            start = time.perf_counter()
            given = self.candidate.call()
            return given if isinstance(given, float) else time.perf_counter() - start
        except Exception as error:  # whatever goes wrong becomes the row's reason, and the others go on
            self.wanted = 0
            self.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
            self.seconds.clear()
            return None


def interleave(candidates: Iterable[Candidate], rounds: Rounds) -> dict[str, Sample]:
    """Run every candidate once to warm up, then all of them in turns; return the seconds of each by its name."""
    running = [_Progress(candidate) for candidate in candidates]
    for one in running:
        progress(f"warm-up: {one.candidate.name}")
        seconds = one.run()
        if seconds is not None:
            one.wanted = rounds.after(seconds)
            if not one.wanted:
                one.seconds.append(seconds)
    for number in range(max((one.wanted for one in running), default=0)):
        progress(f"round {number + 1}")
        for one in running:
            if number < one.wanted:
                seconds = one.run()
                if seconds is not None:
                    one.seconds.append(seconds)
    return {one.candidate.name: Sample(tuple(one.seconds), one.reason) for one in running}


def ratio(samples: Mapping[str, Sample], one: str, other: str) -> float | None:
    """Return the median over the rounds of the time of `one` by that of `other` in the same round; none if one did not run."""
    if one not in samples or other not in samples:
        return None
    pairs = zip(samples[one].seconds, samples[other].seconds, strict=False)  # a slow one has fewer rounds, the first ones
    ratios = [first / second for first, second in pairs]
    return statistics.median(ratios) if ratios else None
