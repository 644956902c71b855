"""Use case: better factors for what a pack dropped, found by forward passes, and the smallest pack that keeps enough."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from deltapack.analysis.evaluating import REFERENCE_BYTES, TOKENS, WINDOW
from deltapack.analysis.grouping import groups_of
from deltapack.analysis.measuring import Asked, Judge, Value, open_judge, retention_of
from deltapack.analysis.reports import TunedGroup, TunedPack, TuneReport
from deltapack.analysis.retuning import digests_of, retuned_entries, write_retuned
from deltapack.analysis.scoring import Score
from deltapack.analysis.searching import GRID, NARROW, search_steps, smallest
from deltapack.checking import as_count, as_number, as_path, as_paths
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import NonFiniteError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.format.writer import check_pack_output
from deltapack.kinds import PACK_FILE, check_output_name
from deltapack.parallel import resolve_workers
from deltapack.reports import Progress

__all__ = ["tune"]

_SECTIONS, _NARROW_SECTIONS = 4, 2


def tune(
    base: str | Path,
    packs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    finetuned: str | Path | None = None,
    text: str | Path | None = None,
    score: Score | None = None,
    groups: int = 1,
    factors: bool = False,
    keep: float | None = None,
    tokens: int = TOKENS,
    window: int = WINDOW,
    device: Any = None,
    dtype: str = "f32",
    workers: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Find better factors for what a pack dropped, by forward passes alone, and write them into a copy of the pack.

    A pack makes up for what it dropped by a factor, 1/(1 - drop rate) times a gain. Where much was dropped a smaller one is often better
    (DAREx, arXiv 2410.09344). Nothing is compressed again: the blobs are copied, and one pass over the base gives the digests of what the
    new factors restore. The pack says under `tuned` in its recipe what was done.

    With a fine-tune its predictions are what the pack should give (KL); without, the loss on the text counts. A score counts in the
    direction from the base to the fine-tune, or to the pack as it is. Tune on another text than the one that you evaluate on.

    Args:
        base: The base, as for `evaluate`.
        packs: The pack, or a ladder of packs of one fine-tune.
        out: The pack to write; nothing is written unless given.
        finetuned: The fine-tune.
        text: As for `evaluate`.
        score: As for `evaluate`.
        groups: Into how many groups of consecutive layers tensors are divided, each with a factor of its own; those outside of the layers
            are one more. One factor for all unless given.
        factors: Whether low-rank terms, from which nothing was dropped, are scaled as well.
        keep: Retention to keep, such as 0.95: the packs are tuned from the smallest up, and the first that keeps as much is the one. It
            takes a fine-tune.
        tokens: As for `evaluate`.
        window: As for `evaluate`.
        device: As for `evaluate`.
        dtype: As for `evaluate`.
        workers: As for `evaluate`.
        force: Whether to replace an existing `out`.
        progress: Called with tokens (or models) measured so far and, at most, in all.

    Raises:
        BackendError: As `evaluate`.
        BaseMismatchError: `base` is not the base of a pack.
        CheckpointError: As `evaluate`.
        FormatError: A pack is damaged.
        NonFiniteError: A loss of the base, the fine-tune or a pack as it is is NaN or infinite.
        OutputError: `out` exists or cannot be written.
        RecipeError: As `evaluate`; or nothing was dropped from a pack, there are several and no `keep`, or base and pack have one score.
    """
    asked = Asked(text, score, tokens, window, device, dtype, REFERENCE_BYTES, workers, progress)
    base, paths = as_path("base", base), _paths(packs, keep, finetuned)
    tuned = None if finetuned is None else as_path("finetuned", finetuned)
    if as_count("groups", groups) < 1:
        raise RecipeError("groups is out of range", expected="at least 1", found=groups)
    target = None if out is None else as_path("out", out)
    if target is not None:
        check_output_name(target, PACK_FILE)
        check_pack_output(target, force=force)
    with ExitStack() as stack:
        readers = sorted((stack.enter_context(PackReader(path)) for path in paths), key=lambda reader: reader.file_bytes)
        tuners = [_Tuner.of(reader, groups, factors) for reader in readers]
        most = (tuned is not None) + 1 + sum(tuner.evaluations for tuner in tuners)
        drafts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deltapack-")))
        with open_judge(base, asked, tuned, most) as judge:
            search = _Search.begin(judge, tuned, drafts)
            rows, chosen = _first_that_keeps(search, tuners, keep)
        size = 0
        if target is not None and chosen is not None:
            size = _write(base, chosen, rows[-1].groups, search, target, drafts, force=force, workers=resolve_workers(workers))
    written = target if chosen is not None else None
    source = None if chosen is None else chosen.reader.path
    return TuneReport(search.objective, rows, source, written, size, keep, search.evaluations, search.warnings())


def _paths(packs: object, keep: float | None, finetuned: object) -> tuple[Path, ...]:
    """Return the packs.

    Raises:
        RecipeError: There is none, or several without a retention to keep, or that without a fine-tune.
    """
    paths = (as_path("pack", packs),) if isinstance(packs, (str, PathLike)) else as_paths("packs", packs)
    if not paths:
        raise RecipeError("there is no pack to tune", expected="a path, or a list of them")
    if keep is None:
        if len(paths) > 1:
            raise RecipeError("there are several packs, and nothing to choose one by", expected="one pack, or --keep", found=len(paths))
        return paths
    if not 0 < as_number("keep", keep) <= 1:
        raise RecipeError("keep is out of range", expected="above 0 and at most 1", found=keep)
    if finetuned is None:
        raise RecipeError("what a pack keeps is told by a fine-tune", expected="--finetuned with --keep", found="none")
    return paths


@dataclass(frozen=True)
class _Tuner:
    """One pack to be tuned: its groups, as names of entries, by their own names."""

    reader: PackReader
    groups: dict[str, frozenset[str]]
    factors: bool

    @classmethod
    def of(cls, reader: PackReader, groups: int, factors: bool) -> _Tuner:
        return cls(reader, groups_of(reader.path, reader.index, groups, factors=factors), factors)

    @property
    def evaluations(self) -> int:
        """How many models are measured at most."""
        inner = len(self.groups) * search_steps(NARROW, _NARROW_SECTIONS) if len(self.groups) > 1 else 0
        return 1 + search_steps(GRID, _SECTIONS) + inner

    def draft(self, multipliers: dict[str, float], out: Path) -> Path:
        """Write the pack with factors that are multiplied by group, and the digests of before."""
        by_name = {name: multipliers[group] for group, names in self.groups.items() for name in names}
        entries = retuned_entries(self.reader.index, lambda entry: by_name[entry.name], factors=self.factors)
        write_retuned(self.reader, entries, out, force=True)
        return out


@dataclass
class _Search:
    """Measures drafts; how much a value costs depends on what there is to compare with."""

    judge: Judge
    drafts: Path
    base: Value
    tuned: Value | None
    evaluations: int
    objective: str

    @classmethod
    def begin(cls, judge: Judge, finetuned: Path | None, drafts: Path) -> _Search:
        tuned = None if finetuned is None else judge.finetuned(finetuned)
        base = judge.base()
        objective = "score" if base.losses is None else "loss" if tuned is None else "kl"
        return cls(judge, drafts, base, tuned, 1 + (tuned is not None), objective)

    def tune(self, tuner: _Tuner) -> TunedPack:
        """Search the factors of one pack."""
        start = self.judge.pack(tuner.reader.path)
        self.evaluations += 1
        better = self._direction(start)
        values = {1.0: start}

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
        return TunedPack(tuner.reader.path, size, found, start.number, end.number, start.kl, end.kl, before, after)

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


def _first_that_keeps(search: _Search, tuners: Sequence[_Tuner], keep: float | None) -> tuple[list[TunedPack], _Tuner | None]:
    """Tune packs from the smallest up until one keeps enough; return them, and that one."""
    rows = list[TunedPack]()
    for tuner in tuners:
        row = search.tune(tuner)
        if keep is not None and _keeps(row.retention_before, keep) and not _keeps(row.retention, keep):
            row = _as_it_was(row)  # a smaller KL is no larger gain
        rows.append(row)
        if keep is None or _keeps(row.retention, keep):
            return rows, tuner
    return rows, None


def _keeps(retention: float | None, keep: float) -> bool:
    return retention is not None and retention >= keep


def _as_it_was(row: TunedPack) -> TunedPack:
    groups = [replace(group, factor=1.0) for group in row.groups]
    return replace(row, groups=groups, after=row.before, kl=row.kl_before, retention=row.retention_before)


def _write(
    base: Path, tuner: _Tuner, groups: Sequence[TunedGroup], search: _Search, out: Path, drafts: Path, *, force: bool, workers: int
) -> int:
    """Write the tuned pack with the digests of what it restores; return its size."""
    multipliers = {group.name: group.factor for group in groups}
    recipe = dict(tuner.reader.index.recipe)
    said = {"by": search.objective, "factors": {name: repr(factor) for name, factor in multipliers.items()}}
    if tuner.factors:
        said["low_rank"] = "scaled"
    recipe["tuned"] = [*(recipe["tuned"] if isinstance(recipe.get("tuned"), list) else []), said]
    with open_checkpoint(base) as checkpoint, PackReader(tuner.draft(multipliers, drafts / "last.dpk")) as draft:
        digests = digests_of(checkpoint, draft, tuner.reader.index, workers=workers)
        entries = draft.index.entries
        return write_retuned(tuner.reader, entries, out, recipe=recipe, digests=digests, force=force)
