"""Cost curves: seconds and peak memory against the size of the model, the number of packs and the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.results import Cell, Table, progress
from benchmarks.speed.candidates import Verb
from benchmarks.speed.inputs import DEFAULT, Bench, open_bench
from benchmarks.timing import Rounds, interleave

__all__ = ["Curve", "Point", "by_packs", "by_size", "by_workers", "draw"]

HEADERS = ("what", "seconds", "min..max", "runs", "GB/s", "peak RSS MB")


@dataclass(frozen=True)
class Point:
    """One verb at one place of a curve; seconds of a call in a warm process, peak of a fresh one."""

    x: float
    what: str
    nbytes: int
    seconds: float | None
    spread: str | None
    runs: int
    peak_mb: float | None
    reason: str = ""

    def row(self) -> tuple[Cell, ...]:
        speed = self.nbytes / 1e9 / self.seconds if self.seconds else None
        return self.x, self.what, self.seconds or f"none: {self.reason}", self.spread, self.runs, speed, self.peak_mb


@dataclass(frozen=True)
class Curve:
    """Points over one axis."""

    name: str
    caption: str
    axis: str
    points: tuple[Point, ...]

    def table(self) -> Table:
        """Return the points as a table; its plot is none as long as nobody drew it."""
        return Table(self.name, self.caption, (self.axis, *HEADERS), tuple(point.row() for point in self.points))

    @property
    def plot(self) -> str:
        """File name of the plot."""
        return f"cost-curves-{self.name}.svg"


def by_size(sizes: Sequence[float], rounds: Rounds) -> Curve:
    """Measure every verb at several sizes of the model, with 2 workers."""
    points: list[Point] = []
    for gigabytes in sizes:
        with open_bench(gigabytes, 1) as bench:
            x = round(bench.family.nbytes / 1e9, 3)
            points += _points(bench, x, [*_verbs(bench, 2), bench.inspect()], rounds)
    return Curve("size", "Against the size of the model, 2 workers", "GB", tuple(points))


def by_packs(bench: Bench, counts: Sequence[int], rounds: Rounds) -> Curve:
    """Measure merges of several numbers of packs, with 2 workers."""
    points = [point for count in counts for point in _points(bench, count, [bench.merge(count, 2)], rounds)]
    return Curve("packs", f"Against the number of packs, {_size(bench)}, 2 workers", "packs", tuple(points))


def by_workers(bench: Bench, counts: Sequence[int], rounds: Rounds) -> Curve:
    """Measure every verb with several numbers of workers."""
    points = [point for count in counts for point in _points(bench, count, _verbs(bench, count), rounds)]
    return Curve("workers", f"Against the number of workers, {_size(bench)}", "workers", tuple(points))


def _size(bench: Bench) -> str:
    return f"{bench.family.nbytes / 1e9:.2f} GB"


def _verbs(bench: Bench, workers: int) -> list[Verb]:
    return [bench.compress(DEFAULT, workers), bench.apply(DEFAULT, workers), bench.merge(2, workers), bench.verify(workers, base=True)]


def _points(bench: Bench, x: float, verbs: Sequence[Verb], rounds: Rounds) -> Iterator[Point]:
    progress(f"curve at {x:g}")
    samples = interleave([verb.candidate() for verb in verbs], rounds)
    for verb in verbs:
        sample = samples[verb.name]
        peak = verb.peak_mb() if sample.seconds else None
        what = "merge to folder" if verb.verb == "merge" else verb.name.partition(",")[0]
        yield Point(x, what, bench.family.nbytes, sample.median, sample.spread, len(sample.seconds), peak, sample.reason)


def draw(curve: Curve, folder: Path) -> Table:
    """Write the plot of a curve into a folder, seconds beside memory; return the table that names it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "deltapack", "svg.fonttype": "none"}  # the same bytes again, and few of them
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, label in zip(panels, ("seconds (median)", "peak RSS, MB"), strict=True):
        for what in dict.fromkeys(point.what for point in curve.points):
            line = [(point.x, value) for point in curve.points if point.what == what and (value := _value(point, label)) is not None]
            panel.plot([x for x, _ in line], [value for _, value in line], marker="o", label=what)
        top = max((value for point in curve.points if (value := _value(point, label)) is not None), default=1.0)
        panel.set(xlabel=curve.axis, ylabel=label, ylim=(0, 1.1 * top))
        panel.grid(visible=True, alpha=0.3)
        if curve.axis != "GB":
            panel.set_xticks(sorted({point.x for point in curve.points}))
    panels[0].legend(fontsize="small")
    figure.suptitle(curve.caption)
    figure.savefig(folder / curve.plot, metadata={"Date": None})
    pyplot.close(figure)
    return replace(curve.table(), plot=curve.plot)


def _value(point: Point, label: str) -> float | None:
    return point.seconds if label.startswith("seconds") else point.peak_mb
