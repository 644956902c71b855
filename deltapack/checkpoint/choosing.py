"""Which rewrites of names are certain enough to be used, and which are left to the user."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deltapack.checkpoint.keys import Key, Parts, Side, fits, template_of
from deltapack.checkpoint.rewrites import LONGEST, Budget, Candidates, Pair, Rewrite

__all__ = ["Choice", "choose_insertions", "choose_replacements"]

_MANY = 3
"""So many names are more than chance."""
_SEEN = 8
"""So many names with one end are looked at; of more, none is certain."""
_CONTRASTS: tuple[tuple[frozenset[str], ...], ...] = tuple(
    tuple(frozenset(words.split()) for words in group.split("|"))
    for group in (
        "encoder enc|decoder dec",
        "text language lm llm|vision visual image img vit|audio speech sound|video",
        "self|cross",
        "q query|k key|v value|o out output",
        "up|down|gate",
        "teacher|student",
        "actor policy|critic|reward|ref reference",
        "generator|discriminator",
        "ema|online|target tgt|source src",
        "left|right",
        "forward fwd|backward bwd",
        "input in|output out",
        "pre|post",
        "unet|vae",
        "shared|routed",
    )
)
"""Words of which one never turns into another: towers, and parts of attention, may have the same shapes throughout."""


@dataclass(frozen=True)
class Choice:
    """What came of candidates.

    Attributes:
        chosen: Rewrites to use, each with the pairs that it alone explains.
        disputed: Rewrites with pairs of which a name fits another partner about as well.
        unsure: Rewrites that nothing contradicts, and for which too little speaks.
        claimed: Names of the base that any candidate would match.
    """

    chosen: Candidates
    disputed: Candidates
    unsure: Candidates
    claimed: frozenset[str] = frozenset()


def _weigh(
    candidates: Candidates, place_of: Callable[[Rewrite, str], str] = lambda rewrite, old: ""
) -> tuple[dict[Rewrite, list[Pair]], dict[Rewrite, list[Pair]]]:
    """Split the pairs of each rewrite into clear ones and disputed ones.

    A rewrite counts by the names that it explains, in all and in one place. Where two give a name different partners, the pairs
    are disputed, unless one explains less than half as much in all and, if it is more than chance, less than half as much as
    the other does in this place: its pair is void, that of the other clear.
    """
    places = {rewrite: Counter(place_of(rewrite, old) for old, _ in pairs) for rewrite, pairs in candidates.items()}
    claims: dict[tuple[int, str], list[tuple[int, int, str]]] = defaultdict(list)
    for rewrite, pairs in candidates.items():
        for old, new in pairs:
            here = places[rewrite][place_of(rewrite, old)]
            for name, partner in (((0, old), new), ((1, new), old)):
                # the two largest are enough: a pair's own claim is one of them, or smaller than both
                claims[name] = sorted([*claims[name], (len(pairs), here, partner)], reverse=True)[:2]
    clear: dict[Rewrite, list[Pair]] = {}
    disputed: dict[Rewrite, list[Pair]] = {}
    for rewrite, pairs in candidates.items():
        for old, new in pairs:
            own = (len(pairs), places[rewrite][place_of(rewrite, old)])
            claimed = ((claims[0, old], new), (claims[1, new], old))
            rival = max(((count, here) for found, mine in claimed for count, here, partner in found if partner != mine), default=(0, 0))
            if not _outweighs(rival, own):
                (clear if _outweighs(own, rival) else disputed).setdefault(rewrite, []).append((old, new))
    return clear, disputed


def _outweighs(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a rewrite, by its names in all and in one place, leaves another one no claim there."""
    return one[0] > 2 * other[0] and (other[0] < _MANY or one[1] > 2 * other[0])


class _Stems:
    """How many names of a side begin with given parts, and how many of these have partners."""

    def __init__(self, side: Side) -> None:
        self._all: Counter[Parts] = Counter()
        self._matched: Counter[Parts] = Counter()
        for key in side.all_keys():
            self._add(self._all, key)
        self.match(side.taken.values())

    @staticmethod
    def _add(counter: Counter[Parts], key: Key) -> None:
        counter.update(key.template[:stop] for stop in range(min(len(key.template), LONGEST) + 1))

    def match(self, keys: Iterable[Key]) -> None:
        """Note that these names have partners now."""
        for key in keys:
            self._add(self._matched, key)

    def count(self, parts: Parts) -> int:
        """How many names begin with these parts."""
        return self._all[parts]

    def matched(self, parts: Parts) -> int:
        """How many of them have partners."""
        return self._matched[parts]


class _Ends:
    """Free names by their last parts: where a rewrite puts a run in, another name might have had other words there.

    Of `norm.weight` and `a.norm.weight` in the base, either may have become `b.norm.weight`.
    """

    def __init__(self, base: Side, tuned: Side, candidates: Candidates) -> None:
        self._sides = (base, tuned)
        self._ends: tuple[dict[Parts, list[Key]], dict[Parts, list[Key]]] = ({}, {})
        for rewrite, pairs in candidates.items():
            for pair in pairs:
                short, end = self._end(rewrite, pair)
                self._ends[short][end] = []
        for side, ends in zip(self._sides, self._ends, strict=True):
            for key in side.free.values():
                for start in range(max(1, len(key.parts) - LONGEST), len(key.parts)):
                    seen = ends.get(key.parts[start:])
                    if seen is not None and len(seen) < _SEEN:
                        seen.append(key)

    def _end(self, rewrite: Rewrite, pair: Pair) -> tuple[int, Parts]:
        """Return which side has the shorter name, and what follows the rewrite in it."""
        short = int(len(rewrite.new) < len(rewrite.old))
        key = self._sides[short].free[pair[short]]
        return short, key.parts[len(rewrite.context) + len((rewrite.old, rewrite.new)[short]) :]

    def mostly_alone(self, rewrite: Rewrite, pairs: list[Pair]) -> bool:
        """Whether for half of the pairs no other name of the shorter side, with other words in place of the run, could be the partner."""
        if rewrite.old and rewrite.new:
            return True
        return 2 * sum(self._is_alone(rewrite, pair) for pair in pairs) >= len(pairs)

    def _is_alone(self, rewrite: Rewrite, pair: Pair) -> bool:
        short, end = self._end(rewrite, pair)
        depth, partner = len(rewrite.context), self._sides[1 - short].free[pair[1 - short]]
        others = self._ends[short][end]
        return len(others) < _SEEN and not any(
            other.name != pair[short]
            and len(other.parts) > depth + len(end)
            and other.template[:depth] == rewrite.context
            and fits(other.info, partner.info)
            for other in others
        )


def _steps(*sides: Side) -> int:
    return sum(min(len(key.parts), LONGEST) ** 2 // 2 + 1 for side in sides for key in side.all_keys())


def _grown(base: Side, tuned: Side, pairs: Iterable[Pair]) -> int:
    """How many pairs differ in their number of rows."""
    return sum(base.free[old].info.shape != tuned.free[new].info.shape for old, new in pairs)


def choose_insertions(base: Side, tuned: Side, candidates: Candidates, budget: Budget) -> Choice:
    """Choose among rewrites that keep all words of the shorter name, those with the most names first."""
    clear, disputed = _weigh(candidates, lambda rewrite, old: base.free[old].parts[len(rewrite.context) + len(rewrite.old)])
    if not clear or not budget.take(2 * _steps(base, tuned)):
        return Choice({}, disputed, {})
    mine, theirs = _Stems(base), _Stems(tuned)
    ends = _Ends(base, tuned, clear)
    chosen: dict[Rewrite, list[Pair]] = {}
    unsure: dict[Rewrite, list[Pair]] = {}
    for rewrite, pairs in sorted(clear.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(pairs) < len(disputed.get(rewrite, ())):
            continue
        tails = [base.free[old].template[len(rewrite.context) + len(rewrite.old) :] for old, _ in pairs]
        few_grew = _grown(base, tuned, pairs) <= max(2, len(pairs) // 4)
        deep = len(pairs) > 1 and max(map(len, tails)) > 2
        enough = not rewrite.context or deep or len(pairs) >= _MANY
        if enough and few_grew and ends.mostly_alone(rewrite, pairs) and _explains(rewrite, tails, mine, theirs):
            chosen[rewrite] = pairs
            mine.match(base.free[old] for old, _ in pairs)
            theirs.match(tuned.free[new] for _, new in pairs)
        else:
            unsure[rewrite] = pairs
    return Choice(chosen, disputed, unsure, _claimed(candidates))


def _claimed(candidates: Candidates) -> frozenset[str]:
    return frozenset(old for pairs in candidates.values() for old, _ in pairs)


def _explains(rewrite: Rewrite, tails: list[Parts], mine: _Stems, theirs: _Stems) -> bool:
    """Whether a rewrite explains enough of what is there.

    A lone tensor that is found again inside of a module that both sides have was rather removed here and added there. And
    either most of what begins with the longer run has a partner, or many names do and they are most of the shorter side,
    or of modules of many tensors that the rewrite moves.
    """
    old, new = (template_of((*rewrite.context, *run)) for run in (rewrite.old, rewrite.new))
    (short, few), (long, many) = ((mine, old), (theirs, new)) if len(rewrite.old) <= len(rewrite.new) else ((theirs, new), (mine, old))
    if len(old) != len(new) and short.count(many) and max(map(len, tails)) < 3:
        return False
    if 2 * (long.matched(many) + len(tails)) >= long.count(many):
        return True
    moved = {tail[:1] for tail in tails}
    here, there = (sum(side.count((*stem, *first)) for first in moved) for side, stem in ((short, few), (long, many)))
    many_moved = len(set(tails)) >= _MANY and max(map(len, tails)) >= 3 and 2 * len(tails) >= max(here, there)
    return many_moved or (len(tails) >= _MANY and 2 * len(tails) >= short.count(few))


def choose_replacements(base: Side, tuned: Side, candidates: Candidates, closed: Mapping[str, set[str]], budget: Budget) -> Choice:
    """Choose among rewrites of words into other words, which need more evidence: the words themselves say nothing.

    Such a rewrite moves a module of at least three different tensors below which all (three quarters at least) is the same
    on both sides; its new words are not in the base at that place, its old ones not in the fine-tune; there is no twin that
    it might as well be; and the words are no opposites.

    Args:
        base: Names of the base.
        tuned: Names of the fine-tune.
        candidates: Rewrites with pairs among all names.
        closed: By label, names that a rewrite which keeps their words might match.
        budget: Steps that may be taken.
    """
    mine_open, theirs_open = (side.free.keys() - closed[side.label] for side in (base, tuned))
    free = {rewrite: pairs for rewrite, pairs in candidates.items() if all(old in mine_open and new in theirs_open for old, new in pairs)}
    if not free or not budget.take(_steps(base, tuned)):
        return Choice({}, {}, {})
    mine, theirs = _Stems(base), _Stems(tuned)
    whole = {rewrite: pairs for rewrite, pairs in free.items() if _moves_a_module(rewrite, pairs, base, tuned, mine, theirs)}
    clear, _ = _weigh(candidates)
    alone = {rewrite: pairs for rewrite, pairs in whole.items() if len(clear.get(rewrite, ())) == len(pairs)}
    chosen = {rewrite: pairs for rewrite, pairs in alone.items() if not _opposite(rewrite)}
    unsure = {rewrite: pairs for rewrite, pairs in alone.items() if _opposite(rewrite)}
    return Choice(chosen, {rewrite: pairs for rewrite, pairs in whole.items() if rewrite not in alone}, unsure, _claimed(candidates))


def _moves_a_module(rewrite: Rewrite, pairs: list[Pair], base: Side, tuned: Side, mine: _Stems, theirs: _Stems) -> bool:
    old, new = (*rewrite.context, *rewrite.old), (*rewrite.context, *rewrite.new)
    if mine.count(new) or theirs.count(old) or 4 * len(pairs) < 3 * max(mine.count(old), theirs.count(new)):
        return False
    return len({base.free[name].template for name, _ in pairs}) >= _MANY and 4 * _grown(base, tuned, pairs) <= len(pairs)


def _opposite(rewrite: Rewrite) -> bool:
    """Whether a word of one side is the opposite of a word of the other."""
    old, new = ({word for part in run for word in re.findall(r"[a-z]+", part.lower())} for run in (rewrite.old, rewrite.new))
    return any(
        (here := {place for place, words in enumerate(group) if words & old})
        and (there := {place for place, words in enumerate(group) if words & new})
        and here != there
        for group in _CONTRASTS
    )
