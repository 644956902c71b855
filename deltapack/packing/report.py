"""What to tell of a finished compression: sizes, where they go, and what a person should be warned of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deltapack.checkpoint.links import LEADS_OUT
from deltapack.checkpoint.sidefiles import LeftOut
from deltapack.format.containers import restored_weight_files
from deltapack.format.index import Index
from deltapack.packing.kinship import shortened
from deltapack.packing.recipe import Recipe
from deltapack.packing.surveying import Survey
from deltapack.reports import CompressReport
from deltapack.sparsify.dare import ALL_KEPT

__all__ = ["compress_report", "left_out_notes", "loss_warnings", "with_loss"]

_MUCH = 0.2
"""Expected loss above which a person is warned."""

_HOUSEKEEPING = re.compile(r"(.*/)?(\.gitattributes|\.gitignore|\.DS_Store|\.git/|\.cache/|__pycache__/)")
_PUBLISHED = re.compile(r"(.*/)?\.git(attributes|ignore)")
"""Housekeeping that is a part of a repository: missed by who wants all of it back."""


def compress_report(
    pack: Path,
    index: Index,
    pack_bytes: int,
    checkpoint_bytes: int,
    split: Mapping[str, int],
    survey: Survey,
    notes: Sequence[str],
    recipe: Recipe,
) -> CompressReport:
    """Sum up a finished compression."""
    files = sum(file.blob.length for file in (*(index.files or ()), *index.containers) if file.blob is not None)
    parts = {"index": 0, "codes": 0, "scales": 0, "factors": 0, "tables": 0, "stored": 0, "exact": 0} | dict(split)
    parts["exact"] += sum(blob.length for blob in index.tables)
    parts["tables"] += sum(entry.digests.length for entry in index.entries if entry.digests is not None)
    parts |= {"files": files, "header": pack_bytes - sum(parts.values()) - files}
    changed = [entry for entry in index.entries if entry.terms]
    elements = sum(entry.common for entry in changed)
    counted = pack_bytes - parts["stored"] - parts["exact"] - files
    worst = sorted(
        ((entry.name, float(entry.stats.max_abs)) for entry in changed if entry.stats is not None),
        key=lambda row: (-row[1], row[0]),
    )
    return CompressReport(
        pack,
        pack_bytes,
        checkpoint_bytes,
        elements,
        8 * counted / elements if elements else 0.0,
        parts,
        dict(sorted(Counter(entry.kind for entry in index.telling).items())),
        dict(sorted(Counter(survey.settled.values()).items())),
        worst[0][1] if worst else 0.0,
        worst[:5],
        [*survey.warnings, *_warnings(worst, recipe, survey, index)],
        list(notes),
        restored_weight_files(index.containers),
    )


def with_loss(report: CompressReport, loss: float | None) -> CompressReport:
    """Return the report of a pack that has a budget: what it is expected to lose, and a warning where that is much."""
    if loss is None:
        return report
    return replace(report, expected_loss=loss, warnings=[*report.warnings, *loss_warnings(loss)])


def loss_warnings(loss: float) -> list[str]:
    """Return what to say of the share of the fine-tune's gain that a pack is expected to lose."""
    if loss <= _MUCH:
        return []
    return [
        f"{f'about {100 * loss:.0f} %' if loss < 0.995 else 'all'} of what the fine-tune gained may be lost in so few bits, by an estimate "
        "from its differences alone: measure the restored model, or give it more (--quality high, or a larger --target-size)."
    ]


def left_out_notes(left_out: Sequence[LeftOut], verb: str = "left out", *, exact: bool = False) -> list[str]:
    """Return which files of the fine-tune's folder do not travel, one sentence for each reason; housekeeping is not worth one.

    Where all is to be `exact`, what a repository publishes of it is.
    """
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        if not _HOUSEKEEPING.fullmatch(item.name) or (exact and _PUBLISHED.fullmatch(item.name)):
            by_reason.setdefault(item.reason, []).append(item.name)
    named = {reason: ", ".join(names) if reason == LEADS_OUT else shortened(names) for reason, names in by_reason.items()}
    return [f"{verb} {names}: {reason}" for reason, names in named.items()]


def _warnings(worst: Sequence[tuple[str, float]], recipe: Recipe, survey: Survey, index: Index) -> list[str]:
    out = list[str]()
    if all(entry.kind in ("unchanged", "alias") for entry in index.telling):
        files = sum(file.blob is not None for file in index.files or ())
        also = f" Only {files} side file{'s' if files > 1 else ''} differ{'' if files > 1 else 's'}." if files else ""
        laid = ", in another layout" if index.pieces else ""
        out.append(
            f"base and fine-tune are equal: every tensor has the same bits{laid}, so there is no difference to pack.{also} "
            "Are the paths right?"
        )
    settings = {name: recipe.for_tensor(name, survey.roles[name]) for name, _ in worst}
    dropped = [(name, value, settings[name]) for name, value in worst if settings[name].keep < ALL_KEPT]
    risky = [(name, value, how) for name, value, how in dropped if value > how.method.risky]
    if risky:
        method, largest = risky[0][2].method, risky[0][1]
        names = ", ".join(f"{name} ({value:.3g}, {100 * (1 - how.density):.4g} % dropped)" for name, value, how in risky[:3])
        fails = f"{method.name.upper()} does not work near {method.hopeless:g} and above"
        risk = fails if largest >= method.hopeless else f"dropping 90 % is known to be safe up to {method.risky:g} only"
        rate = "drop rate for them in --set" if recipe.target is not None else "--drop-rate, or --set 'REGEX:drop-rate=0.5'"
        out.append(
            f"max |delta| is {largest:.3g} and {risk}: {len(risky)} of {len(dropped)} tensors that were dropped from are above "
            f"{method.risky:g}, the worst {names}. "
            f"Measure the restored model; use a lower {rate}, or --exclude for these tensors."
        )
    code = [file.name for file in index.files or () if file.name.endswith(".py") and file.blob is not None]
    if code:
        out.append(f"the pack carries Python code ({', '.join(code)}); whoever restores it should read it before running it.")
    return out
