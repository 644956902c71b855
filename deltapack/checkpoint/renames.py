"""Partners for tensors whose names differ: wrappers, rewrites found in the names, the renamings that transformers knows.

Each source proposes pairs; a pair is made only where its names fit nobody else about as well, and it is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain

from deltapack.checkpoint.choosing import Choice, choose_insertions, choose_replacements
from deltapack.checkpoint.conversions import rename_as_transformers
from deltapack.checkpoint.keys import Key, Parts, Side, fits, joined, kind_of, plain_keys, template_of
from deltapack.checkpoint.rewrites import Budget, Candidates, Pair, Rewrite, insertions, replacements
from deltapack.checkpoint.tensors import TensorInfo

__all__ = ["STEPS", "Renamed", "match_renamed"]

STEPS = 60_000_000
"""Steps that a search for rewrites may take: enough for 200,000 names of ten parts on each side that have little in common."""
_ROUNDS = 32
_REUSED = 64
_TOLD = 16


@dataclass(frozen=True)
class Renamed:
    """What names that differ were matched.

    Attributes:
        base_of: From the name in the fine-tune to the name in the base.
        notes: What was done, and what was left to the user.
    """

    base_of: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _State:
    base: Side
    tuned: Side
    pairs: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    disputed: Mapping[str, Candidates] = field(default_factory=dict)
    unsure: Mapping[str, Candidates] = field(default_factory=dict)


def match_renamed(
    base: Mapping[str, TensorInfo],
    finetuned: Mapping[str, TensorInfo],
    matched: Mapping[str, str],
    models: Sequence[str] = (),
    *,
    skipped: Iterable[str] = (),
    steps: int = STEPS,
) -> Renamed:
    """Match the tensors that have no partner yet.

    Args:
        base: All tensors of the base.
        finetuned: All tensors of the fine-tune.
        matched: From names of the fine-tune to names of the base, those that have partners.
        models: What the configs call the model, for the renamings that transformers knows; without, it is not imported.
        skipped: Names of the fine-tune that get no partner.
        steps: How much may be looked at.
    """
    state = _begin(base, finetuned, matched, set(skipped))
    if not state.base.free or not state.tuned.free:
        return Renamed({})
    budget = Budget(steps)
    stages: tuple[Callable[[_State], _State], ...] = (
        _equal,
        lambda state: _insert(state, budget),
        lambda state: _convert(state, models),
        lambda state: _replace(state, budget),
    )
    for _ in range(_ROUNDS):
        for stage in stages:
            made = len(state.pairs)
            state = stage(state) if state.base.free and state.tuned.free else state
            if len(state.pairs) > made:
                break
        else:
            break
    return Renamed({new: old for old, new, _ in state.pairs}, _notes(state, finetuned, budget))


def _begin(base: Mapping[str, TensorInfo], finetuned: Mapping[str, TensorInfo], matched: Mapping[str, str], skipped: set[str]) -> _State:
    """Sort names into free ones, those with partners, and those of which no tensor of the other side has the shape."""
    partners = set(matched.values())
    left = {name for name in base if name not in partners}
    free = {name for name in finetuned if name not in matched and name not in skipped}
    kinds = {kind_of(base[name]) for name in left} & {kind_of(finetuned[name]) for name in free}
    if not kinds:
        return _State(Side("base", {}, {}, {}), Side("fine-tune", {}, {}, {}))

    def side(label: str, tensors: Mapping[str, TensorInfo], open_names: set[str], taken: Iterable[str]) -> Side:
        keys = plain_keys(tensors)
        fit = {name: keys[name] for name in tensors if name in open_names and kind_of(tensors[name]) in kinds}
        held = {name: keys[name] for name in taken}
        return Side(label, fit, held, {name: key for name, key in keys.items() if name not in fit and name not in held})

    return _State(side("base", base, left, matched.values()), side("fine-tune", finetuned, free, matched))


def _pair(state: _State, pairs: Iterable[tuple[str, str, str]]) -> _State:
    """Return the state with these pairs (of the base, of the fine-tune, why) made."""
    made = [(old, new, (*_told(state, old, new), *filter(None, [why]))) for old, new, why in pairs]
    base, tuned = state.base.take(old for old, _, _ in made), state.tuned.take(new for _, new, _ in made)
    return replace(state, base=base, tuned=tuned, pairs=(*state.pairs, *made))


def _told(state: _State, old: str, new: str) -> tuple[str, ...]:
    """Return what was done to two names, but for what was done to both."""
    mine, theirs = state.base.free[old].told, state.tuned.free[new].told
    here = [told.replace("\0", "base") for told in mine if told not in theirs]
    return (*here, *(told.replace("\0", "fine-tune") for told in theirs if told not in mine))


def _equal(state: _State) -> _State:
    """Pair names that are equal but for wrappers and what was rewritten so far."""
    theirs = {key.parts: key for key in state.tuned.free.values()}
    pairs = [(key.name, theirs[key.parts].name) for key in state.base.free.values() if key.parts in theirs]
    return _pair(state, ((old, new, "") for old, new in pairs if fits(state.base.free[old].info, state.tuned.free[new].info)))


def _insert(state: _State, budget: Budget) -> _State:
    """Pair names by rewrites that keep all words of the shorter name."""
    candidates = insertions(state.base, state.tuned, budget)
    return _use(state, "insert", choose_insertions(state.base, state.tuned, candidates, budget))


def _replace(state: _State, budget: Budget) -> _State:
    """Pair names by rewrites of words into other words."""
    doubts = (*state.disputed.values(), state.unsure.get("insert", {}))
    doubted = [pair for candidates in doubts for pairs in candidates.values() for pair in pairs]
    closed = {"base": {old for old, _ in doubted}, "fine-tune": {new for _, new in doubted}}
    candidates = replacements(state.base, state.tuned, budget)
    return _use(state, "replace", choose_replacements(state.base, state.tuned, candidates, closed, budget))


def _use(state: _State, source: str, choice: Choice) -> _State:
    """Make the pairs of the chosen rewrites, rewrite names that these also hold for, and put names aside that stay disputed."""
    if not choice.chosen:
        return replace(state, disputed={**state.disputed, source: choice.disputed}, unsure={**state.unsure, source: choice.unsure})
    strong = sorted(choice.chosen, key=lambda rewrite: (-len(choice.chosen[rewrite]), rewrite))[:_REUSED]
    follow = {
        rewrite: None if rewrite.old and rewrite.new else _followers(rewrite, state.base, choice.chosen[rewrite]) for rewrite in strong
    }
    state = _pair(state, ((old, new, str(rewrite)) for rewrite, pairs in choice.chosen.items() for old, new in pairs))
    left = {rewrite: pairs for rewrite, pairs in choice.disputed.items() if rewrite in choice.chosen}
    olds = {old for pairs in left.values() for old, _ in pairs}
    news = {new for pairs in left.values() for _, new in pairs}
    base, tuned = state.base.put_aside(olds), state.tuned.put_aside(news)
    for rewrite, parts in follow.items():
        base = _rewritten(base, rewrite, parts, choice.claimed)
    return replace(state, base=base, tuned=tuned, disputed={**state.disputed, f"{source} {len(state.pairs)}": left})


def _followers(rewrite: Rewrite, base: Side, pairs: Iterable[Pair]) -> set[str]:
    """Return the parts that follow a rewrite in the names that it explains."""
    return {base.free[old].parts[len(rewrite.context) + len(rewrite.old)] for old, _ in pairs}


def _rewritten(side: Side, rewrite: Rewrite, followers: set[str] | None, claimed: Set[str]) -> Side:
    """Return a side with the rewrite done in free names where the same part follows (any, if it moved a module).

    A name that a candidate would have matched stays as it is: it was weighed. So does one whose result another name has.
    """
    start = len(rewrite.context)
    stop = start + len(rewrite.old)
    count = Counter(key.parts for key in side.all_keys())
    keys: dict[str, Key] = {}
    for name, key in side.free.items():
        parts = key.parts
        here = parts[start:stop] == rewrite.old and parts[stop : stop + 1] != () and template_of(parts[:start]) == rewrite.context
        new: Parts = (*parts[:start], *rewrite.new, *parts[stop:])
        fresh = here and name not in claimed and (followers is None or parts[stop] in followers) and not count[new]
        keys[name] = replace(key, parts=new, told=(*key.told, str(rewrite))) if fresh else key
        count[new] += fresh
    return replace(side, free=keys)


def _convert(state: _State, models: Sequence[str]) -> _State:
    """Pair names of which transformers turns one into the other."""
    sides = [{joined(key.parts): name for name, key in side.free.items()} for side in (state.base, state.tuned)]
    changed = [rename_as_transformers(models, sorted(names)) for names in sides]
    pairs: list[Pair] = []
    for renames, (olds, news) in ((changed[0], sides), (changed[1], sides[::-1])):
        counts = Counter(renames.values())
        for name, target in renames.items():
            # the target is a name as the newest transformers has it, which it does not change again
            if target in news and target not in olds and counts[target] == 1 and target not in changed[0] and target not in changed[1]:
                pair = (olds[name], news[target])
                pairs.append(pair if olds is sides[0] else pair[::-1])
    seen = Counter(name for pair in pairs for name in (("base", pair[0]), ("fine-tune", pair[1])))
    sure = [pair for pair in pairs if seen["base", pair[0]] == seen["fine-tune", pair[1]] == 1]
    fit = ((old, new) for old, new in sure if fits(state.base.free[old].info, state.tuned.free[new].info))
    return _pair(state, ((old, new, "renaming as transformers does") for old, new in fit))


def _notes(state: _State, finetuned: Mapping[str, TensorInfo], budget: Budget) -> tuple[str, ...]:
    """Say what was matched by what, what was not as two readings were possible, and what was not looked at."""
    groups: dict[str, list[str]] = defaultdict(list)
    for _, new, told in state.pairs:
        groups[" and ".join(told)].append(new)
    matched = [
        f"{_counted([finetuned[name].numel for name in names])} matched after {told}"
        for told, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    if len(matched) > _TOLD:
        matched = [*matched[:_TOLD], f"names were matched in {len(matched) - _TOLD} more ways, each for few of them"]
    doubts = []
    if disputed := _open(state, state.disputed):
        doubts.append(f"names were not matched, as more than one partner is possible: {_some(disputed)}; use --map")
    if unsure := _open(state, state.unsure):
        doubts.append(f"names were not matched, as it is not certain that they mean the same: {_some(unsure)}; use --map")
    if budget.short:
        doubts.append("too many names differ to look for every way in which they may; use --map")
    return (*matched, *doubts)


def _counted(sizes: Sequence[int]) -> str:
    return f"{len(sizes):,} name{'s' * (len(sizes) > 1)} ({sum(sizes):,} elements) {'were' if len(sizes) > 1 else 'was'}"


def _open(state: _State, found: Mapping[str, Candidates]) -> dict[Rewrite, int]:
    """Count, by rewrite, the pairs of which neither tensor has a partner in the end."""
    counts: Counter[Rewrite] = Counter()
    for rewrite, pairs in chain.from_iterable(candidates.items() for candidates in found.values()):
        counts[rewrite] += sum(old not in state.base.taken and new not in state.tuned.taken for old, new in pairs)
    return {rewrite: count for rewrite, count in counts.items() if count}


def _some(rewrites: Mapping[Rewrite, int]) -> str:
    """Name the rewrites with the most names."""
    first = sorted(rewrites, key=lambda rewrite: (-rewrites[rewrite], rewrite))[:4]
    more = f" and {len(rewrites) - len(first)} more" if len(rewrites) > len(first) else ""
    return "; ".join(f"{rewrite} ({rewrites[rewrite]:,} of them)" for rewrite in first) + more
