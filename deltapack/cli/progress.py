"""The progress bar: share, amount, rate and time left, on stderr; gone when the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.text import Text

from deltapack.reports import Traffic, watch_traffic

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(label: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """Draw a bar while the block runs; the value is a callback that takes work done and work in all.

    What comes from other machines, or goes there, has lines of its own. When the
    work done falls, a new stage has begun, and rate and time left start afresh.
    """
    columns = _columns(DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else _columns(MofNCompleteColumn(), _Rate(unit))
    # Plain prints of other code go above the bar: rich redirects both streams while it is shown.
    bar = Progress(*columns, console=(console := Console(stderr=True)), transient=True)
    beside = Progress(*_columns(DownloadColumn(), TransferSpeedColumn()), console=console)
    with Live(Group(bar, beside), console=console, transient=True):
        task = bar.add_task(label, total=None)
        elsewhere: dict[str, TaskID] = {}
        last = 0

        def moved(traffic: Traffic) -> None:
            """Show what goes to other machines, and what comes from there, each from the first byte on."""
            for name, done, total in (("sending", traffic.sent, traffic.to_send), ("receiving", traffic.received, None)):
                if done or total:
                    if name not in elsewhere:
                        elsewhere[name] = beside.add_task(name, total=total)
                    beside.update(elsewhere[name], completed=done, total=total)

        def update(done: int, total: int) -> None:
            nonlocal last
            if done < last:
                bar.reset(task)
            bar.update(task, completed=done, total=total or None)
            last = done

        with watch_traffic(moved):
            yield update


def _columns(*amount: ProgressColumn) -> list[ProgressColumn]:
    return [TextColumn("{task.description}"), _Bar(), TaskProgressColumn(), *amount, TimeRemainingColumn()]


class _Bar(BarColumn):
    """A bar that is empty while nobody knows how much there is to do; rich would show a full one that pulses."""

    def render(self, task: Task) -> ProgressBar:
        if task.total is None:
            return ProgressBar(total=1, completed=0, width=self.bar_width and max(1, self.bar_width))
        return super().render(task)


class _Rate(ProgressColumn):
    """Work per second, of something that is not bytes."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self._unit}/s", style="progress.data.speed")
