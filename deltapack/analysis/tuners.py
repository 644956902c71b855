"""Packs whose factors are searched: given ones, or made for the search, and what measures their drafts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from deltapack.analysis.grouping import groups_of
from deltapack.analysis.measuring import Judge, Value, retention_of
from deltapack.analysis.reports import TunedGroup, TunedPack
from deltapack.analysis.retuning import retuned_entries, write_retuned
from deltapack.analysis.searching import GRID, NARROW, search_steps, smallest
from deltapack.errors import NonFiniteError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.packing.budget import Budget
from deltapack.packing.compressing import compress
from deltapack.packing.recipe import Recipe

__all__ = ["LADDER", "Rungs", "Search", "Tuner", "measurements"]

LADDER = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Bits a weight of the packs that are made for a search where none is given."""
_SECTIONS, _NARROW_SECTIONS = 4, 2


def measurements(groups: int) -> int:
    """Return how many models are measured at most to tune a pack whose layers are divided into so many groups."""
    inner = (groups + 1) * search_steps(NARROW, _NARROW_SECTIONS) if groups > 1 else 0
    return 1 + search_steps(GRID, _SECTIONS) + inner


@dataclass(frozen=True)
class Tuner:
    """One pack to be tuned.

    Attributes:
        reader: The pack.
        groups: Names of entries that share a factor, by the group's name.
        factors: Whether low-rank terms are scaled, too.
        name: What reports call it.
    """

    reader: PackReader
    groups: dict[str, frozenset[str]]
    factors: bool
    name: str

    @classmethod
    def of(cls, reader: PackReader, groups: int, factors: bool, name: str) -> Tuner:
        """Divide the tensors of a pack. Raises as `groups_of`."""
        return cls(reader, groups_of(reader.path, reader.index, groups, factors=factors), factors, name)

    def draft(self, multipliers: dict[str, float], out: Path) -> Path:
        """Write the pack with factors that are multiplied by group, and the digests of before."""
        by_name = {name: multipliers[group] for group, names in self.groups.items() for name in names}
        entries = retuned_entries(self.reader.index, lambda entry: by_name[entry.name], factors=self.factors)
        write_retuned(self.reader, entries, out, force=True)
        return out


@dataclass
class Search:
    """Measures drafts; how much a value costs depends on what there is to compare with."""

    judge: Judge
    drafts: Path
    base: Value
    tuned: Value | None
    evaluations: int
    objective: str

    @classmethod
    def begin(cls, judge: Judge, finetuned: Path | None, drafts: Path) -> Search:
        """Measure the fine-tune, if there is one, and the base."""
        tuned = None if finetuned is None else judge.finetuned(finetuned)
        base = judge.base()
        objective = "score" if base.losses is None else "loss" if tuned is None else "kl"
        return cls(judge, drafts, base, tuned, 1 + (tuned is not None), objective)

    def tune(self, tuner: Tuner) -> TunedPack:
        """Search the factors of one pack."""
        start = self.judge.pack(tuner.reader.path)
        self.evaluations += 1
        better = self._direction(start)
        values: dict[float, Value] = {}  # by their costs

        def cost_of(value: Value) -> float:
            if self.objective == "kl" and value.kl is not None:
                return value.kl
            return better * value.number

        def cost(multipliers: dict[str, float]) -> float:
            """Measure a draft; one that overflows costs more than any other."""
            self.evaluations += 1
            try:
                value = self.judge.pack(tuner.draft(multipliers, self.drafts / "draft.dpk"), verify=False)
            except NonFiniteError:
                return float("inf")
            values[cost_of(value)] = value
            return cost_of(value)

        chosen = dict.fromkeys(tuner.groups, 1.0)
        best, least = smallest(lambda x: cost(dict.fromkeys(chosen, x)), GRID, _SECTIONS, at_one=cost_of(start))
        chosen = dict.fromkeys(chosen, best)
        for group in chosen if len(chosen) > 1 else ():
            at = chosen[group]
            inner, least = smallest(lambda x, g=group, a=at: cost({**chosen, g: a * x}), NARROW, _NARROW_SECTIONS, at_one=least)  # type: ignore[misc]
            chosen[group] = at * inner
        end = start if least == cost_of(start) else values[least]
        found = [TunedGroup(name, len(names), chosen[name]) for name, names in tuner.groups.items()]
        before, after = self._retention(start), self._retention(end)
        size = tuner.reader.file_bytes
        return TunedPack(tuner.name, size, found, start.number, end.number, start.kl, end.kl, before, after)

    def _direction(self, start: Value) -> float:
        """Return 1 where small numbers are good, -1 where large ones are.

        Raises:
            RecipeError: The scores do not say.
        """
        if self.objective != "score":
            return 1.0
        goal = start if self.tuned is None else self.tuned
        if goal.number == self.base.number:
            what = "base and fine-tune have" if self.tuned is not None else "base and pack have"
            hint = "Measure what the fine-tune learned."
            raise RecipeError(f"{what} the same score, so no direction is better", found=goal.number, hint=hint)
        return 1.0 if goal.number < self.base.number else -1.0

    def _retention(self, value: Value) -> float | None:
        return None if self.tuned is None else retention_of(value, self.base, self.tuned)[0]

    def warnings(self) -> list[str]:
        """Say where retention means nothing."""
        if self.tuned is None or self._retention(self.tuned) is not None:
            return []
        return ["the fine-tune is no better than the base here beyond chance, so retention means nothing: measure what it learned"]


@dataclass
class Rungs:
    """Makes packs of budgets, one after the other, for as long as their stack is open.

    Attributes:
        stack: Closes them.
        base: The base.
        finetuned: The fine-tune.
        folder: Where they lie.
        groups: Into how many groups their layers are divided.
        factors: Whether low-rank terms are scaled, too.
        workers: Threads.
        notes: What a person should know.
    """

    stack: ExitStack
    base: Path
    finetuned: Path
    folder: Path
    groups: int
    factors: bool
    workers: int | None
    notes: list[str] = field(default_factory=list)

    def make(self, bits: float) -> Tuner | None:
        """Return a pack of so many bits a weight; none where none is so small, which is noted.

        Raises:
            DeltapackError: As `deltapack.compress`.
        """
        budget, out = Budget(bits=bits), self.folder / f"{bits:g}.dpk"
        try:
            compress(self.base, self.finetuned, out, recipe=Recipe(budget=budget), workers=self.workers)
        except RecipeError as error:
            self.notes.append(f"{bits:g} bits a weight: {error.what}")
            return None
        return Tuner.of(self.stack.enter_context(PackReader(out)), self.groups, self.factors, f"{bits:g} bits a weight")
