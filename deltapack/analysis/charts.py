"""Plots as SVG, by hand: they lie inside of a page, look alike on every machine, and need neither a library nor a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as _escape

__all__ = ["HEIGHT", "WIDTH", "Axis", "Series", "bar_chart", "escape", "heat_map", "line_chart", "parts_chart"]

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 48
_CELL = 22
_COLOURS = 6
"""Classes `c0` to `c5` of the page's style."""


def escape(text: str) -> str:
    r"""Return text as HTML; names come from files that anyone may have written, so what cannot be printed is spelt out.

    >>> print(escape("<b>\x1b"))
    &lt;b&gt;\x1b
    """
    return _escape("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text))


@dataclass(frozen=True)
class Axis:
    """A direction: what it shows, and whether by powers of ten."""

    title: str
    log: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together, with a name, and what to show beside each."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    joined: bool = True


@dataclass(frozen=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def place(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(max(value, self.low)) if self.log else value
        return self.start + (self.stop - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values within, few."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            every = max(1, (last - first) // 6)
            found = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) > 1:
                return found
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step = next(unit * times for times in (1, 2, 5, 10) if (self.high - self.low) / (unit * times) <= 5)
        return [step * number for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Return points, joined by lines, of several series with a legend; none where there is nothing to show.

    Values that a logarithm has not are left out.
    """
    shown = [[(own, label) for own, label in _labelled(one) if _fits(own[0], x) and _fits(own[1], y)] for one in series]
    points = [point for own in shown for point, _ in own]
    if not points:
        return ""
    across = _scale([point[0] for point in points], _LEFT, WIDTH - _RIGHT, x.log)
    up = _scale([point[1] for point in points], HEIGHT - _BOTTOM, _TOP, y.log)
    parts = [_axes(x, y, across, up)]
    for number, (one, own) in enumerate(zip(series, shown, strict=True)):
        colour = f"c{number % _COLOURS}"
        places = [(across.place(px), up.place(py), label) for (px, py), label in own]
        if one.joined and len(places) > 1:
            path = "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py, _ in places)
            parts.append(f'<path class="line {colour}" d="{path}"/>')
        parts += [
            f'<circle class="dot {colour}" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{escape(label)}</title></circle>'
            for px, py, label in places
        ]
    return _framed(title, "".join(parts), HEIGHT) + _legend([one.name for one in series])


def bar_chart(title: str, x: Axis, y: Axis, bars: Sequence[tuple[str, float]]) -> str:
    """Return one bar for each label; none where there is nothing to show."""
    if not bars or not any(_fits(value, y) for _, value in bars):
        return ""
    up = _scale([value for _, value in bars if _fits(value, y)] + ([] if y.log else [0.0]), HEIGHT - _BOTTOM, _TOP, y.log)
    wide = (WIDTH - _RIGHT - _LEFT) / len(bars)
    parts = [_axes(x, y, None, up)]
    every = math.ceil(len(bars) / (12 if max(len(label) for label, _ in bars) <= 7 else 8))
    for number, (label, value) in enumerate(bars):
        left = _LEFT + number * wide
        if _fits(value, y):
            top, told = up.place(value), escape(f"{label}: {value:.4g}")
            gap = min(wide * 0.15, 4)
            bar = f'x="{left + gap:.1f}" y="{top:.1f}" width="{max(wide - 2 * gap, 0.5):.1f}" height="{up.start - top:.1f}"'
            parts.append(f'<rect class="bar" {bar}><title>{told}</title></rect>')
        if number % every == 0:
            parts.append(
                f'<text class="tick" x="{left + wide / 2:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(label)}</text>'
            )
    return _framed(title, "".join(parts), HEIGHT)


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], unit: str) -> str:
    """Return a grid of cells that are the darker the larger their value; none where there is nothing to show."""
    known = [value for row in values for value in row if value is not None and value > 0]
    if not known:
        return ""
    low, high = min(known), max(known)
    left = 8 + max(7 * len(name) for name in rows)
    wide = (WIDTH - _RIGHT - left) / len(columns)
    height = _TOP + _CELL * len(rows) + 28
    parts = []
    for number, (name, row) in enumerate(zip(rows, values, strict=True)):
        top = _TOP + number * _CELL
        parts.append(f'<text class="tick" x="{left - 6}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        for place, value in enumerate(row):
            if value is None:
                continue
            depth = 0.08 + 0.92 * (math.log(max(value, low) / low) / math.log(high / low) if high > low else 1.0)
            box = f'x="{left + place * wide:.1f}" y="{top}" width="{max(wide - 1, 0.5):.1f}" height="{_CELL - 1}"'
            told = escape(f"{name}, layer {columns[place]}: {value:.4g} {unit}")
            parts.append(f'<rect class="cell" {box} fill-opacity="{depth:.3f}"><title>{told}</title></rect>')
    every = math.ceil(len(columns) / 20)
    for place, label in enumerate(columns):
        if place % every == 0:
            at = left + (place + 0.5) * wide
            parts.append(f'<text class="tick" x="{at:.1f}" y="{height - 14}" text-anchor="middle">{escape(label)}</text>')
    return _framed(title, "".join(parts), height)


def parts_chart(title: str, parts: Sequence[tuple[str, int]], unit: str) -> str:
    """Return one bar across, divided by shares, with a legend that tells them; none where there is nothing to show.

    Colours repeat from the seventh part on; a part too thin to be seen is in the legend only.
    """
    total = sum(max(count, 0) for _, count in parts)
    if not total:
        return ""
    left, whole, drawn = 1.0, WIDTH - 2, []
    for number, (name, count) in enumerate(parts):
        wide = whole * max(count, 0) / total
        told = escape(f"{name}: {count:,} {unit}, {100 * count / total:.1f} %")
        if wide > 0.5:
            box = f'x="{left:.1f}" y="8" width="{max(wide - 1, 0.5):.1f}" height="34"'
            drawn.append(f'<rect class="c{number % _COLOURS}" {box}><title>{told}</title></rect>')
        left += wide
    return _framed(title, "".join(drawn), 50) + _legend([f"{name} {100 * count / total:.1f} %" for name, count in parts])


def _labelled(series: Series) -> list[tuple[tuple[float, float], str]]:
    labels = series.labels or [f"{series.name}: {x:.4g}, {y:.4g}" for x, y in series.points]
    return list(zip(series.points, labels, strict=True))


def _fits(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _scale(values: Sequence[float], start: float, stop: float, log: bool) -> _Scale:
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.15, high * 1.15
    elif low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    else:
        room = 0.05 * (high - low)
        low, high = low - room * (low != 0), high + room
    return _Scale(low, high, start, stop, log)


def _axes(x: Axis, y: Axis, across: _Scale | None, up: _Scale) -> str:
    parts = []
    for value in up.ticks():
        at = up.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in across.ticks() if across is not None else ():
        at = across.place(value) if across is not None else 0.0
        parts.append(f'<line class="grid" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="{at:.1f}" x2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(f'<text class="name" x="{(_LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.title)}</text>')
    parts.append(f'<text class="name" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y.title)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    """Return a number of a tick, such as 30k."""
    units = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
    return next((f"{value / size:.4g}{unit}" for least, size, unit in units if abs(value) >= least), f"{value:.4g}")


def _framed(title: str, content: str, height: float) -> str:
    box = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escape(title)}">{content}</svg>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(f'<li><i class="key c{number % _COLOURS}"></i>{escape(name)}</li>' for number, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'
