"""What to tell of a finished compression: sizes, where they go, and what a person should be warned of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltapack.checkpoint.sidefiles import LeftOut
from deltapack.format.index import Index
from deltapack.packing.recipe import Recipe
from deltapack.reports import CompressReport
from deltapack.sparsify.table import SPARSIFIERS

__all__ = ["compress_report", "left_out_notes"]

_HOUSEKEEPING = re.compile(r"(.*/)?(\.gitattributes|\.gitignore|\.DS_Store|\.git/|\.cache/|__pycache__/)")
_SHOWN = 5


def compress_report(
    pack: Path,
    index: Index,
    pack_bytes: int,
    checkpoint_bytes: int,
    split: Mapping[str, int],
    notes: Sequence[str],
    recipe: Recipe,
    differences: Sequence[str] = (),
) -> CompressReport:
    """Sum up a finished compression; `differences` are warnings of base and fine-tune as such, which come first."""
    files = sum(file.blob.length for file in index.files or () if file.blob is not None)
    parts = {"index": 0, "codes": 0, "scales": 0, "tables": 0, "stored": 0} | dict(split)
    parts["tables"] += sum(entry.digests.length for entry in index.entries if entry.digests is not None)
    parts |= {"files": files, "header": pack_bytes - sum(parts.values()) - files}
    changed = [entry for entry in index.entries if entry.terms]
    elements = sum(entry.common for entry in changed)
    counted = pack_bytes - parts["stored"] - files
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
        dict(sorted(Counter(entry.kind for entry in index.entries).items())),
        worst[0][1] if worst else 0.0,
        worst[:5],
        [*differences, *_warnings(worst, recipe, index)],
        list(notes),
    )


def left_out_notes(left_out: Sequence[LeftOut]) -> list[str]:
    """Return which files of the fine-tune's folder do not travel, one sentence for each reason; housekeeping is not worth one."""
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        if not _HOUSEKEEPING.fullmatch(item.name):
            by_reason.setdefault(item.reason, []).append(item.name)
    return [f"left out {_some(names)}: {reason}" for reason, names in by_reason.items()]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _warnings(worst: Sequence[tuple[str, float]], recipe: Recipe, index: Index) -> list[str]:
    out, method = list[str](), SPARSIFIERS[recipe.sparsify]
    if all(entry.kind in ("unchanged", "alias") for entry in index.entries):
        files = sum(file.blob is not None for file in index.files or ())
        also = f" Only {files} side file{'s' if files > 1 else ''} differ{'' if files > 1 else 's'}." if files else ""
        out.append(
            f"base and fine-tune are equal: every tensor has the same bits, so there is no difference to pack.{also} Are the paths right?"
        )
    largest, risky = worst[0][1] if worst else 0.0, method.risky
    if recipe.drop_rate > 0 and largest > risky:
        names = ", ".join(f"{name} ({value:.3g})" for name, value in worst[:3] if value > risky)
        count = sum(value > risky for _, value in worst)
        fails = f"{method.name.upper()} does not work near {method.hopeless:g} and above"
        risk = fails if largest >= method.hopeless else f"dropping 90 % is risky above {risky:g}"
        out.append(
            f"max |delta| is {largest:.3g} and {risk}: {count} of {len(worst)} changed tensors are above {risky:g}, the worst {names}. "
            "Measure the restored model; use a lower --drop-rate, or --set 'REGEX:drop-rate=0.5' or --exclude for these tensors."
        )
    code = [file.name for file in index.files or () if file.name.endswith(".py") and file.blob is not None]
    if code:
        out.append(f"the pack carries Python code ({', '.join(code)}); whoever restores it should read it before running it.")
    return out
