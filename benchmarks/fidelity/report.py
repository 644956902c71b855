"""The study's tables, made of its results alone: all of them, ours beside the best other, what equal quality takes, and the defaults."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from benchmarks.fidelity.running import Result
from benchmarks.fidelity.study import DEFAULT, ENDS, FORMER, OURS
from benchmarks.results import Cell, Table

__all__ = ["Mean", "means", "tables"]

SHOWN = ("agreement", "loss", "exact match", "cosine", "control", "noise")
JUDGED = (1.0, 0.5, 0.25, 0.1)
"""Bits a weight at which ours is set beside the best of others."""
LEAST, MOST = 0.95, 1.02
"""Shares of these bits within which another method is of that size. One of fewer bits that is better than these, or ours, is told."""
ALL_HEADERS = ("model", "method", "asked", "bits/weight", "KL", "KL spread", "retention", "retention spread", *SHOWN, "seeds")
BESIDE_HEADERS = (
    *("model", "bits/weight", "measure", "deltapack", "spread", "best other", "of", "held"),
    *("seeds", "asked", "better with fewer bits", "these bits", "of these"),
)
EQUAL_HEADERS = ("model", "measure", "DARE's drop rate", "value", "DARE bits/weight", "deltapack bits/weight", "x smaller")
DEFAULT_HEADERS = (
    *("model", "former default bits/weight", "default bits/weight", "x smaller"),
    *("KL before", "KL now", "retention before", "retention now", "held"),
)


@dataclass(frozen=True)
class Mean:
    """Results of all seeds of a method at a size.

    Attributes:
        subject: The fine-tune.
        method: The method.
        target: What was asked for.
        bits: Mean bits a weight.
        values: Mean of each measure.
        spreads: Largest minus smallest, over the seeds.
        seeds: How many.
    """

    subject: str
    method: str
    target: float
    bits: float
    values: dict[str, float]
    spreads: dict[str, float]
    seeds: int

    def value(self, measure: str) -> float | None:
        return self.values.get(measure)


def means(results: Iterable[Result]) -> list[Mean]:
    """Return results with the seeds put together, in order of appearance."""
    groups: dict[tuple[str, str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.subject, result.method, result.target), []).append(result)
    return [_mean(*key, group) for key, group in groups.items()]


def _mean(subject: str, method: str, target: float, group: Sequence[Result]) -> Mean:
    columns = {name: [result.measures[name] for result in group] for name in group[0].measures}
    values = {name: fmean(column) for name, column in columns.items()}
    spreads = {name: max(column) - min(column) for name, column in columns.items()}
    return Mean(subject, method, target, fmean(result.bits for result in group), values, spreads, len(group))


def tables(results: Sequence[Result]) -> list[Table]:
    """Return all tables."""
    found = means(results)
    return [
        Table("all", "Every method on every fine-tune", ALL_HEADERS, tuple(_row(mean) for mean in found)),
        Table("beside", "deltapack at a size, and the best other method at that size", BESIDE_HEADERS, tuple(_beside_rows(found))),
        Table("equal", "Bits a weight of deltapack at the quality of its DARE packs", EQUAL_HEADERS, tuple(_equal_rows(found))),
        Table("defaults", "What compress makes when nothing is asked for, now and before", DEFAULT_HEADERS, tuple(_default_rows(found))),
    ]


def _row(mean: Mean) -> tuple[Cell, ...]:
    judged = [cell for name in ("kl", "retention") for cell in (mean.value(name), mean.spreads.get(name) if mean.seeds > 1 else None)]
    return mean.subject, mean.method, mean.target, mean.bits, *judged, *map(mean.value, SHOWN), mean.seeds


def _subjects(found: Sequence[Mean]) -> dict[str, list[Mean]]:
    groups: dict[str, list[Mean]] = {}
    for mean in found:
        groups.setdefault(mean.subject, []).append(mean)
    return groups


def _measures(group: Sequence[Mean]) -> Iterator[tuple[str, int]]:
    """Yield the measures that judge a fine-tune, and 1 where more is better or -1."""
    names = group[0].values
    yield from ((name, sign) for name, sign in (("kl", -1), ("retention", 1), ("exact match", 1), ("cosine", 1)) if name in names)


def _beside_rows(found: Sequence[Mean]) -> Iterator[tuple[Cell, ...]]:
    for group in _subjects(found).values():
        others = [mean for mean in group if mean.method not in (OURS, DEFAULT, *ENDS)]
        for ours in (mean for mean in group if mean.method == OURS and mean.target in JUDGED):
            for measure, sign in _measures(group):
                if measure in ours.values:
                    yield _beside(ours, [mean for mean in others if measure in mean.values], measure, sign)


def _beside(ours: Mean, others: Sequence[Mean], measure: str, sign: int) -> tuple[Cell, ...]:
    """Return the row of a size and a measure: the best of others of that size, and what is better with fewer bits if anything is."""

    def better(other: Mean) -> bool:
        spread = max(ours.spreads[measure], other.spreads[measure])
        return sign * (ours.values[measure] - other.values[measure]) < -spread

    def best(of: Iterable[Mean]) -> Mean | None:
        return max(of, key=lambda mean: sign * mean.values[measure], default=None)

    near = best(mean for mean in others if LEAST * ours.target <= mean.bits <= MOST * ours.target)
    fewer = best(mean for mean in others if mean.bits < LEAST * ours.target)
    lost = any(other is not None and better(other) for other in (near, fewer))
    if fewer is not None and not better(fewer) and (near is None or sign * (fewer.values[measure] - near.values[measure]) <= 0):
        fewer = None
    held = "no" if lost else "yes" if near is not None else None
    line = ours.subject, ours.bits, measure, ours.values[measure], ours.spreads[measure] if ours.seeds > 1 else None
    of = (None, None) if near is None else (near.values[measure], f"{near.method}, {near.bits:.3g} bits")
    return *line, *of, held, ours.seeds, ours.target, *((None,) * 3 if fewer is None else (fewer.values[measure], fewer.bits, fewer.method))


def _equal_rows(found: Sequence[Mean]) -> Iterator[tuple[Cell, ...]]:
    for subject, group in _subjects(found).items():
        for measure, sign in _measures(group):
            curve = sorted((mean.bits, mean.values[measure]) for mean in group if mean.method == OURS)
            for dare in (mean for mean in group if mean.method == FORMER):
                bits = _bits_for(curve, dare.values[measure], sign, measure == "kl")
                ratio = None if bits is None else dare.bits / bits
                yield subject, measure, dare.target, dare.values[measure], dare.bits, bits, ratio


def _bits_for(curve: Sequence[tuple[float, float]], wanted: float, sign: int, logarithmic: bool) -> float | None:
    """Return the least bits at which a curve reaches a value, between its points on a logarithmic scale of bits; none if it does not."""
    scale = (lambda value: math.log(max(value, 1e-12))) if logarithmic else (lambda value: value)
    for (low, before), (high, after) in pairwise(curve):
        if sign * before < sign * wanted <= sign * after:
            share = (scale(wanted) - scale(before)) / (scale(after) - scale(before))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def _default_rows(found: Sequence[Mean]) -> Iterator[tuple[Cell, ...]]:
    for subject, group in _subjects(found).items():
        now = next((mean for mean in group if mean.method == DEFAULT), None)
        before = next((mean for mean in group if mean.method == FORMER and mean.target == 0.9), None)
        if now is None or before is None:
            continue
        worse = any(
            sign * (now.values[name] - before.values[name]) < -max(now.spreads[name], before.spreads[name])
            for name, sign in _measures(group)
            if name in now.values and name in before.values
        )
        held = "yes" if before.bits >= 1.5 * now.bits and not worse else "no"
        pairs = [mean.value(name) for name in ("kl", "retention") for mean in (before, now)]
        yield subject, before.bits, now.bits, before.bits / now.bits, *pairs, held
