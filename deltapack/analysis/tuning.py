"""Use case: better factors for what a pack dropped, found by forward passes, and the smallest pack that keeps enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from deltapack.analysis.evaluating import REFERENCE_BYTES, TOKENS, WINDOW
from deltapack.analysis.measuring import Asked, open_judge
from deltapack.analysis.reports import TunedGroup, TunedPack, TuneReport
from deltapack.analysis.retuning import digests_of, write_retuned
from deltapack.analysis.scoring import Score
from deltapack.analysis.tuners import LADDER, Rungs, Search, Tuner, measurements
from deltapack.checking import as_checkpoint, as_count, as_items, as_number, as_pack, as_path, as_paths
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import RecipeError
from deltapack.format.reader import PackReader
from deltapack.format.writer import check_pack_output
from deltapack.kinds import PACK_FILE, check_output_name
from deltapack.parallel import resolve_workers
from deltapack.reports import Progress
from deltapack.sources.inputs import guarded, note_named
from deltapack.sources.locks import scratch

__all__ = ["tune"]

_LESS = 0.01
"""Share of the gain that KL may cost without a word."""


@guarded
def tune(
    base: str | Path,
    packs: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    finetuned: str | Path | None = None,
    text: str | Path | None = None,
    score: Score | None = None,
    groups: int = 1,
    factors: bool = False,
    keep: float | None = None,
    budgets: Sequence[float] = LADDER,
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
        packs: The pack, or a ladder of packs of one fine-tune; with `keep` none, and packs of some budgets are made for the search.
        out: The pack to write; nothing is written unless given.
        finetuned: The fine-tune.
        text: As for `evaluate`.
        score: As for `evaluate`.
        groups: Into how many groups of consecutive layers tensors are divided, each with a factor of its own; those outside of the layers
            are one more. One factor for all unless given.
        factors: Whether low-rank terms, from which nothing was dropped, are scaled as well.
        keep: Retention to keep, such as 0.95: the packs are tuned from the smallest up, and the first that keeps as much is the one. It
            takes a fine-tune.
        budgets: Bits a weight of the packs that are made where none is given, those of `deltapack.packing.budget.Budget`.
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
    base, paths = as_checkpoint("base", base), _paths(packs, keep, finetuned)
    ladder = () if paths else tuple(sorted(as_number("a budget", bits) for bits in as_items("budgets", budgets, "bits a weight")))
    tuned = None if finetuned is None else as_checkpoint("finetuned", finetuned)
    if as_count("groups", groups) < 1:
        raise RecipeError("groups is out of range", expected="at least 1", found=groups)
    note_named(base, tuned, *paths)
    target = None if out is None else as_path("out", out)
    if target is not None:
        check_output_name(target, PACK_FILE)
        check_pack_output(target, force=force)
    with ExitStack() as stack:
        drafts = stack.enter_context(scratch())
        readers = sorted((stack.enter_context(PackReader(path)) for path in paths), key=lambda reader: reader.file_bytes)
        given = [Tuner.of(reader, groups, factors, str(reader.path)) for reader in readers]
        maker = Rungs(stack, base, tuned, drafts, groups, factors, workers) if tuned is not None else None
        made = (maker.make(bits) for bits in ladder) if maker is not None else ()
        most = (tuned is not None) + 1 + measurements(groups) * (len(given) or len(ladder))
        with open_judge(base, asked, tuned, most) as judge:
            search = Search.begin(judge, tuned, drafts)
            rows, chosen = _first_that_keeps(search, given or made, keep)
            told = search.warnings() + ([] if chosen is None else _lost(rows[-1])) + (maker.notes if maker is not None else [])
        size = 0
        if target is not None and chosen is not None:
            size = _write(base, chosen, rows[-1].groups, search, target, drafts, force=force, workers=resolve_workers(workers))
    written, name = (target, chosen.name) if chosen is not None else (None, None)
    return TuneReport(search.objective, rows, name, written, size, keep, search.evaluations, told)


def _paths(packs: object, keep: float | None, finetuned: object) -> tuple[Path, ...]:
    """Return the packs.

    Raises:
        RecipeError: There is none, or several without a retention to keep, or that without a fine-tune.
    """
    paths = (as_pack("pack", packs),) if isinstance(packs, (str, PathLike)) else as_paths("packs", packs)
    if keep is None:
        if not paths:
            raise RecipeError("there is no pack to tune", expected="a path, or a list of them; or --keep and --finetuned")
        if len(paths) > 1:
            raise RecipeError("there are several packs, and nothing to choose one by", expected="one pack, or --keep", found=len(paths))
        return paths
    if not 0 < as_number("keep", keep) <= 1:
        raise RecipeError("keep is out of range", expected="above 0 and at most 1", found=keep)
    if finetuned is None:
        raise RecipeError("what a pack keeps is told by a fine-tune", expected="--finetuned with --keep", found="none")
    return paths


def _first_that_keeps(search: Search, tuners: Iterable[Tuner | None], keep: float | None) -> tuple[list[TunedPack], Tuner | None]:
    """Tune packs from the smallest up until one keeps enough; return them, and that one."""
    rows = list[TunedPack]()
    for tuner in tuners:
        if tuner is None:
            continue
        row = search.tune(tuner)
        if keep is not None and _keeps(row.retention_before, keep) and not _keeps(row.retention, keep):
            row = _as_it_was(row)  # a smaller KL is no larger gain
        rows.append(row)
        if keep is None or _keeps(row.retention, keep):
            return rows, tuner
    return rows, None


def _keeps(retention: float | None, keep: float) -> bool:
    return retention is not None and retention >= keep


def _lost(row: TunedPack) -> list[str]:
    """Say where predictions that are nearer to the fine-tune's have less of its gain."""
    before, after = row.retention_before, row.retention
    if row.kl is None or before is None or after is None or before - after < _LESS:
        return []
    kept = f"it keeps {100 * after:.1f} % of the gain, and {100 * before:.1f} % as it was"
    return [f"{row.pack} is nearer to the fine-tune now (KL), but {kept}: without --finetuned the loss on the text decides"]


def _as_it_was(row: TunedPack) -> TunedPack:
    groups = [replace(group, factor=1.0) for group in row.groups]
    return replace(row, groups=groups, after=row.before, kl=row.kl_before, retention=row.retention_before)


def _write(
    base: Path, tuner: Tuner, groups: Sequence[TunedGroup], search: Search, out: Path, drafts: Path, *, force: bool, workers: int
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
