"""Rewrites of names: one run of parts for another, and the pairs of tensors that each would make partners.

A rewrite is written from the base to the fine-tune. Numbers are never rewritten: a run holds none, but for a run in front of
a name that only one side has (`0.auto_model.`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import product

from deltapack.checkpoint.keys import NUMBER, Key, Parts, Side, fits, shown

__all__ = ["LONGEST", "Budget", "Candidates", "Pair", "Rewrite", "insertions", "replacements"]

Pair = tuple[str, str]
"""A name of the base and one of the fine-tune."""
LONGEST = 64
"""Names of more parts than this are left alone."""
_TWINS = 4
"""Where more places than this hold the same tensors, no rewrite can tell them apart."""


@dataclass(frozen=True, order=True)
class Rewrite:
    """Below `context`, the parts `old` of the base are `new` in the fine-tune; numbers in `context` stand for any."""

    context: Parts
    old: Parts
    new: Parts

    def __str__(self) -> str:
        if not self.context and not (self.old and self.new):
            side, run = ("base", self.old) if self.old else ("fine-tune", self.new)
            return f"removing the prefix {shown((*run, ''))} from the {side}"
        old, new = ((*self.context, *run, "") for run in (self.old, self.new))
        return f"reading {shown(old)} of the base as {shown(new)}"


Candidates = Mapping[Rewrite, list[Pair]]


@dataclass
class Budget:
    """Steps that a search may still take; a step is one part of one name looked at.

    Attributes:
        left: How many.
        short: Whether a part of the search was left out.
    """

    left: int
    short: bool = False

    def take(self, steps: int) -> bool:
        """Whether so many steps are left; if so they are taken."""
        if steps > self.left:
            self.short = True
            return False
        self.left -= steps
        return True


_Templates = dict[Parts, dict[Parts, Key]]


def _by_template(keys: Iterable[Key]) -> _Templates:
    found: _Templates = defaultdict(dict)
    for key in keys:
        if len(key.parts) <= LONGEST:
            found[key.template][key.digits] = key
    return dict(found)


def insertions(base: Side, tuned: Side, budget: Budget) -> Candidates:
    """Find every rewrite that keeps all words of the shorter name: a run put in, taken out, or with its words in another order."""
    mine, theirs = _by_template(base.free.values()), _by_template(tuned.free.values())
    found: dict[Rewrite, list[Pair]] = defaultdict(list)
    if not budget.take(sum(len(template) ** 3 // 2 + 1 for side in (mine, theirs) for template in side)):
        return found
    for (long, short), context, run in _with_a_run_more(mine, theirs):
        found[Rewrite(context, run, ())].append((long.name, short.name))
    for (long, short), context, run in _with_a_run_more(theirs, mine):
        found[Rewrite(context, (), run)].append((short.name, long.name))
    for rewrite, pairs in _reordered(mine, theirs):
        found[rewrite].extend(pairs)
    return found


def _with_a_run_more(long: _Templates, short: _Templates) -> Iterator[tuple[tuple[Key, Key], Parts, Parts]]:
    """Give (longer key, shorter key), what is before the run that only the longer one has, and the run."""
    heads = {template[:stop] for template in short for stop in range(len(template))}
    tails = {template[start:] for template in short for start in range(len(template))}
    for template, keys in long.items():
        for start, stop in _runs(template, heads, tails):
            others = short.get(template[:start] + template[stop:])
            if others:
                numbers = template[start:stop].count(NUMBER)
                for key in keys.values():
                    other = others.get(key.digits[numbers:])
                    if other and fits(key.info, other.info):
                        yield (key, other), template[:start], key.parts[start:stop]


def _runs(template: Parts, heads: Set[Parts], tails: Set[Parts]) -> Iterator[tuple[int, int]]:
    """Give each run that may be taken out, once: of runs whose removal leaves the same name, the last.

    What stands before and after it must stand there in names of the other side.
    """
    first = next((stop for stop in range(len(template) - 1, 0, -1) if template[stop:] not in tails), 0) + 1
    for start in range(len(template)):
        if template[:start] not in heads:
            return
        for stop in range(start + 1, len(template)):
            if start and template[stop - 1] == NUMBER:
                break
            if stop >= first and template[start] != template[stop]:
                yield start, stop


def _reordered(mine: _Templates, theirs: _Templates) -> Iterator[tuple[Rewrite, list[Pair]]]:
    """Give rewrites that put the words of a run into another order."""
    for _, olds, news in _meeting(mine, theirs, lambda template: (tuple(sorted(template)),)):
        for old, new in product(olds, news):
            rewrite, tail = _difference(old, new)
            if rewrite.old and tail and NUMBER not in rewrite.old:
                yield rewrite, _partners(mine[old], theirs[new])


def _meeting(
    mine: _Templates, theirs: _Templates, parts_of: Callable[[Parts], Iterable[Parts]]
) -> Iterator[tuple[Parts, list[Parts], list[Parts]]]:
    """Give what templates of both sides have in common, with those of each side, where they are few."""
    here: dict[Parts, tuple[list[Parts], list[Parts]]] = {}
    for template in mine:
        for parts in parts_of(template):
            here.setdefault(parts, ([], []))[0].append(template)
    for template in theirs:
        for parts in parts_of(template):
            if parts in here:
                here[parts][1].append(template)
    for parts, (olds, news) in here.items():
        if len(olds) <= _TWINS and len(news) <= _TWINS:
            yield parts, olds, news


def _difference(old: Parts, new: Parts) -> tuple[Rewrite, Parts]:
    """Return the shortest rewrite of one name into another, and what follows it in both."""
    shortest = min(len(old), len(new))
    tail = next((n for n in range(shortest) if old[-1 - n] != new[-1 - n]), shortest)
    head = next((n for n in range(shortest - tail) if old[n] != new[n]), shortest - tail)
    return Rewrite(old[:head], old[head : len(old) - tail], new[head : len(new) - tail]), old[len(old) - tail :]


def _partners(mine: Mapping[Parts, Key], theirs: Mapping[Parts, Key]) -> list[Pair]:
    """Pair keys of two templates by their numbers."""
    return [(key.name, theirs[digits].name) for digits, key in mine.items() if digits in theirs and fits(key.info, theirs[digits].info)]


def replacements(base: Side, tuned: Side, budget: Budget) -> Candidates:
    """Find every rewrite of words into other words that at least two parts follow, among all names.

    Names with partners are looked at because they tell which places have twins: `v_proj`, in both, shows that `q_proj` of the base
    cannot be told from `k_proj` of the fine-tune.
    """
    mine, theirs = _by_template(base.all_keys()), _by_template(tuned.all_keys())
    found: dict[Rewrite, list[Pair]] = defaultdict(list)
    if not budget.take(sum(len(template) ** 2 for side in (mine, theirs) for template in side)):
        return found
    for tail, olds, news in _meeting(mine, theirs, lambda template: (template[start:] for start in range(1, len(template) - 1))):
        for old, new in product(olds, news):
            if old[-1 - len(tail)] != new[-1 - len(tail)]:
                rewrite, _ = _difference(old, new)
                if rewrite.old and rewrite.new and _same_numbers(rewrite):
                    found[rewrite].extend(_partners(mine[old], theirs[new]))
    return {rewrite: pairs for rewrite, pairs in found.items() if pairs}


def _same_numbers(rewrite: Rewrite) -> bool:
    """Whether no part of the runs is a number, and numbers inside of words (`fc1`) are the same on both sides."""
    old, new = (re.findall(r"\d+", ".".join(run)) for run in (rewrite.old, rewrite.new))
    return NUMBER not in (*rewrite.old, *rewrite.new) and old == new
