"""Time several things in turns, A B C A B C, so that what disturbs one disturbs all; from samples to rows beside those of the floors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from benchmarks.results import Cell, progress

__all__ = ["Candidate", "Group", "Peaks", "Rounds", "Sample", "floor_headers", "interleave", "ratio"]

Peaks = MutableMapping[str, float]
"""Peak memory in MB by the name of what was run."""
TIMES = ("seconds", "min..max", "runs", "GB/s", "ns / weight", "peak RSS MB")
FLOORS = ("copy memory, 1 thread", "copy memory, 2 threads", "cp", "cp + sync", "read files")


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


def floor_headers(*before: str) -> tuple[str, ...]:
    """Headers of a table whose rows `Group.rows` makes."""
    return (*before, *TIMES, *(f"x {floor}" for floor in FLOORS))


@dataclass
class Group:
    """Things that were timed in turns, on a checkpoint of one size.

    Attributes:
        nbytes: Bytes of the checkpoint's tensors.
        samples: By name.
        peaks: Peak memory in MB of a fresh process, by name, where it was measured.
        wrong: Why a thing has no time although it ran: its output is not right. By name.
        numel: Number of its weights; as many as bf16 has in these bytes unless given.
    """

    nbytes: int
    samples: Mapping[str, Sample] = field(default_factory=dict)
    peaks: Peaks = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)
    numel: int = 0

    def __post_init__(self) -> None:
        self.samples = {
            name: Sample(reason=f"WRONG OUTPUT: {self.wrong[name]}") if self.wrong.get(name) else sample
            for name, sample in self.samples.items()
        }

    def seconds(self, name: str) -> float | None:
        """Median of a thing; none where it has none."""
        return self.samples[name].median if name in self.samples else None

    def ratio(self, one: str, other: str) -> float | None:
        """Median of the time of one thing by that of another."""
        return ratio(self.samples, one, other)

    def rows(self, *labels: Cell, names: Sequence[str] = ()) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each thing, or for those of some names."""
        for name in names or self.samples:
            yield *labels, name, *self._times(name), *(self._against(name, floor) for floor in FLOORS)

    def _against(self, name: str, floor: str) -> Cell:
        """Ratio to a floor, or why the floor has no time."""
        reason = self.samples[floor].reason if floor in self.samples else ""
        return f"none: {reason}" if reason else self.ratio(name, floor)

    def _times(self, name: str) -> Iterator[Cell]:
        sample, seconds = self.samples[name], self.samples[name].median
        yield seconds if seconds is not None else f"none: {sample.reason}"
        yield sample.spread
        yield len(sample.seconds)
        yield self.nbytes / 1e9 / seconds if seconds else None
        yield seconds * 1e9 / (self.numel or self.nbytes / 2) if seconds else None
        yield self.peaks.get(name)
