"""From samples to rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.results import Cell
from benchmarks.speed.verbs import Peaks
from benchmarks.timing import Sample, ratio

__all__ = ["Group", "floor_headers"]

TIMES = ("seconds", "min..max", "runs", "GB/s", "ns / weight", "peak RSS MB")
FLOORS = ("copy memory, 1 thread", "copy memory, 2 threads", "cp", "cp + sync", "read files")


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
